// Arguments on their way in, and what long calls ask of Python while they run.
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "bind.h"
#include "core/error.h"

namespace {

std::atomic<int> running_calls{0};
std::atomic<bool> leaving{false};

void wait_for_calls() {
  leaving = true;
  const py::gil_scoped_release unlocked;
  while (running_calls > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

std::string type_name(const py::handle& object) { return Py_TYPE(object.ptr())->tp_name; }

[[noreturn]] void refuse_type(const std::string& where, const std::string& expected, const std::string& found) {
  throw py::type_error(where + ": expected " + expected + ", found " + found);
}

[[noreturn]] void refuse_value(size_t position, int64_t limit, const std::string& found) {
  throw rwkv::Error(rwkv::join("token ", position, ": expected an id from 0 to ", limit - 1, ", found ", found));
}

template <class T>
std::vector<int32_t> ids_of_array(const py::array& array, int64_t limit) {
  const auto values = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!values) throw py::error_already_set();
  std::vector<int32_t> ids(static_cast<size_t>(values.size()));
  for (size_t i = 0; i < ids.size(); i++) {
    const T value = values.data()[i];
    if (std::cmp_less(value, 0) || std::cmp_greater_equal(value, limit)) refuse_value(i, limit, std::to_string(value));
    ids[i] = static_cast<int32_t>(value);
  }
  return ids;
}

int32_t id_of(const py::handle& item, size_t position, int64_t limit) {
  if (PyBool_Check(item.ptr()) || !PyIndex_Check(item.ptr()))
    refuse_type(rwkv::join("token ", position), "an integer", type_name(item));
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0) refuse_value(position, limit, py::str(number));
  if (value < 0 || value >= limit) refuse_value(position, limit, std::to_string(value));
  return static_cast<int32_t>(value);
}

}  // namespace

py::str text_of(std::string_view bytes) {
  PyObject* const text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "backslashreplace");
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

std::vector<int32_t> ids_of(const py::object& ids, int64_t limit) {
  constexpr auto kExpected = "a sequence of integers";
  if (py::isinstance<py::array>(ids)) {
    const auto array = py::reinterpret_borrow<py::array>(ids);
    const char kind = array.dtype().kind();
    if (kind != 'i' && kind != 'u')
      refuse_type("tokens", kExpected, "an array of " + std::string(py::str(array.dtype())));
    if (array.ndim() != 1) refuse_type("tokens", "one dimension", "shape " + std::string(py::str(array.attr("shape"))));
    if (kind == 'u') return ids_of_array<uint64_t>(array, limit);
    return array.itemsize() <= 4 ? ids_of_array<int32_t>(array, limit) : ids_of_array<int64_t>(array, limit);
  }
  // Text is a sequence too, and bytes are one of integers: both are prompts that nobody has encoded yet.
  PyObject* const object = ids.ptr();
  if (PyUnicode_Check(object) || PyBytes_Check(object) || PyByteArray_Check(object) || !PySequence_Check(object))
    refuse_type("tokens", kExpected, type_name(ids));
  const auto sequence = py::reinterpret_steal<py::object>(PySequence_Tuple(object));
  if (!sequence) throw py::error_already_set();
  const auto tuple = py::reinterpret_borrow<py::tuple>(sequence);
  std::vector<int32_t> values(tuple.size());
  for (size_t i = 0; i < values.size(); i++) values[i] = id_of(tuple[i], i, limit);
  return values;
}

Unlocked::Unlocked() {
  running_calls++;
  thread_ = PyEval_SaveThread();
}

Unlocked::~Unlocked() {
  PyEval_RestoreThread(thread_);
  running_calls--;
}

void bind_exit(py::module_&) { py::module_::import("atexit").attr("register")(py::cpp_function(wait_for_calls)); }

rwkv::Poll signal_poll() {
  using Clock = std::chrono::steady_clock;
  static constexpr auto kInterval = std::chrono::milliseconds(20);
  return [next = Clock::now() + kInterval]() mutable {
    if (leaving) throw rwkv::Error("expected a running interpreter, found one that is about to end");
    if (Clock::now() < next) return;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    next = Clock::now() + kInterval;
  };
}

std::vector<rwkv::AdapterSpec> adapters_of(const Adapters& adapters) {
  std::vector<rwkv::AdapterSpec> specs;
  for (const auto& [path, alpha, scale] : adapters) specs.push_back({path, alpha, scale});
  return specs;
}

rwkv::Progress progress_of(const py::object& progress) {
  if (progress.is_none()) return {};
  if (PyCallable_Check(progress.ptr()) == 0) refuse_type("progress", "a callable or None", type_name(progress));
  return [&progress](int64_t done, int64_t total) {
    const py::gil_scoped_acquire gil;
    progress(done, total);
  };
}
