// Arrays on a device, in and out, by the protocols that other libraries read: DLPack and __cuda_array_interface__.
#include "bind.h"
#include "core/error.h"
#include "dlpack.h"

namespace {

using rwkv::DeviceArray;
using rwkv::DeviceId;

std::string shape_of(const std::vector<int64_t>& shape) { return py::str(py::tuple(py::cast(shape))); }

// What a capsule owns: the array with its keeper, and the lists that the struct points into.
template <class M>
struct Exported {
  DeviceArray array;
  M managed = {};
};

template <class M>
M* export_array(const DeviceArray& array) {
  auto* e = new Exported<M>{array};
  DeviceArray& a = e->array;
  e->managed.tensor = {.data = const_cast<void*>(a.data),
                       .device = {a.device.kind, a.device.index},
                       .ndim = int32_t(a.shape.size()),
                       .dtype = {2, uint8_t(8 * rwkv::size_of(a.dtype)), 1},
                       .shape = a.shape.data(),
                       .strides = a.strides.data(),
                       .byte_offset = 0};
  e->managed.context = e;
  e->managed.deleter = [](M* m) { delete static_cast<Exported<M>*>(m->context); };
  return &e->managed;
}

template <class M>
py::capsule capsule_of(M* managed, const char* name) {
  return py::capsule(managed, name, [](PyObject* capsule) {
    // Somebody who has taken it over has renamed it.
    const char* now = PyCapsule_GetName(capsule);
    if (!now || std::string_view(now).starts_with("used_")) return;
    auto* m = static_cast<M*>(PyCapsule_GetPointer(capsule, now));
    m->deleter(m);
  });
}

py::capsule dlpack_of(const DeviceArray& array, bool versioned) {
  if (!versioned) return capsule_of(export_array<dlpack::Managed>(array), "dltensor");
  auto* managed = export_array<dlpack::ManagedVersioned>(array);
  managed->major = 1, managed->minor = 0, managed->flags = dlpack::kReadOnly;
  return capsule_of(managed, "dltensor_versioned");
}

py::tuple bytes_of(const DeviceArray& a) {
  py::tuple t(a.strides.size());
  for (size_t i = 0; i < a.strides.size(); i++) t[i] = a.strides[i] * int64_t(rwkv::size_of(a.dtype));
  return t;
}

py::tuple tuple_of(const std::vector<int64_t>& numbers) { return py::tuple(py::cast(numbers)); }

py::object cuda_interface(const DeviceArray& a) {
  if (a.device.kind != DeviceId::cuda) return py::none();
  py::dict d;
  d["shape"] = tuple_of(a.shape);
  d["strides"] = bytes_of(a);
  d["typestr"] = a.dtype == rwkv::DType::f16 ? "<f2" : "<f4";
  d["data"] = py::make_tuple(reinterpret_cast<uintptr_t>(a.data), true);  // read-only
  d["version"] = 3;
  d["stream"] = py::none();  // all work on it has ended
  return d;
}

// From the first number in memory to the last, and each number's place between them in the order of the shape.
struct Span {
  int64_t least = 0, length = 1;
  std::vector<int64_t> strides;

  explicit Span(const dlpack::Tensor& t) : strides(size_t(t.ndim)) {
    int64_t row = 1, greatest = 0;
    for (int i = t.ndim; i-- > 0; row *= t.shape[i]) {
      strides[size_t(i)] = t.strides ? t.strides[i] : row;
      const int64_t last = (t.shape[i] - 1) * strides[size_t(i)];
      (last < 0 ? least : greatest) += last;
    }
    length = greatest - least + 1;
  }
};

float number(float v) { return v; }
float number(uint16_t half) { return rwkv::f16_to_f32(half); }

template <class T>
void gather(const T* from, const dlpack::Tensor& t, const std::vector<int64_t>& strides, int dim, float*& to) {
  if (dim == t.ndim) return void(*to++ = number(*from));
  for (int64_t i = 0; i < t.shape[dim]; i++, from += strides[size_t(dim)]) gather(from, t, strides, dim + 1, to);
}

// The numbers of a capsule, whose memory stays its owner's.
py::array_t<float> numbers_of(rwkv::Engine& engine, const std::string& name, const py::capsule& capsule) {
  const char* kind = capsule.name();
  RWKV_CHECK(rwkv::StateError, kind && std::string_view(kind) == "dltensor", "state: ", name,
             ": expected a DLPack capsule called dltensor, found ", kind ? kind : "one without a name");
  const auto* managed = static_cast<const dlpack::Managed*>(capsule.get_pointer());
  const dlpack::Tensor& t = managed->tensor;
  RWKV_CHECK(rwkv::StateError, t.dtype.code == 2 && (t.dtype.bits == 32 || t.dtype.bits == 16) && t.dtype.lanes == 1,
             "state: ", name, ": expected float32 or float16, found DLPack's type ", int(t.dtype.code), " of ",
             int(t.dtype.bits), " bits");
  const std::vector<int64_t> shape(t.shape, t.shape + t.ndim), expected = engine.part_shape(name);
  RWKV_CHECK(rwkv::StateError, shape == expected, "state: ", name, ": expected ", shape_of(expected), ", found ",
             shape_of(shape));
  py::array_t<float> array(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  const Span span(t);
  constexpr int64_t kSparse = 64;
  RWKV_CHECK(rwkv::StateError, span.length <= kSparse * array.size(), "state: ", name,
             ": expected numbers near each other, found ", array.size(), " among ", span.length,
             "; a contiguous copy can be passed");
  float* to = array.mutable_data();
  const auto read = [&]<class T>(T) {
    std::vector<T> between(size_t(span.length));
    const auto* data = static_cast<const std::byte*>(t.data) + t.byte_offset + span.least * int64_t(sizeof(T));
    engine.read_device({DeviceId::Kind(t.device.kind), t.device.index}, data,
                       std::as_writable_bytes(std::span(between)));
    gather(between.data() - span.least, t, span.strides, 0, to);
  };
  const Unlocked unlocked;
  t.dtype.bits == 32 ? read(float()) : read(uint16_t());
  return array;
}

}  // namespace

void bind_device(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray")
      .def_property_readonly("shape", [](const DeviceArray& a) { return tuple_of(a.shape); })
      .def_property_readonly("strides", bytes_of)
      .def_property_readonly("device",
                             [](const DeviceArray& a) { return py::make_tuple(int(a.device.kind), a.device.index); })
      .def("dlpack", dlpack_of)
      .def("cuda_interface", cuda_interface);
  m.def("numbers_of", numbers_of);
}
