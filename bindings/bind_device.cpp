// Arrays on a device, in and out, by the protocols that other libraries read: DLPack and __cuda_array_interface__.
#include "bind.h"
#include "core/error.h"
#include "dlpack.h"

namespace {

using rwkv::DeviceArray;
using rwkv::DeviceId;

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
  e->managed.tensor = {.data = const_cast<float*>(a.data),
                       .device = {a.device.kind, a.device.index},
                       .ndim = int32_t(a.shape.size()),
                       .dtype = {2, 32, 1},
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

py::tuple bytes_of(const std::vector<int64_t>& strides) {
  py::tuple t(strides.size());
  for (size_t i = 0; i < strides.size(); i++) t[i] = strides[i] * int64_t(sizeof(float));
  return t;
}

py::tuple tuple_of(const std::vector<int64_t>& numbers) { return py::tuple(py::cast(numbers)); }

py::object cuda_interface(const DeviceArray& a) {
  if (a.device.kind != DeviceId::cuda) return py::none();
  py::dict d;
  d["shape"] = tuple_of(a.shape);
  d["strides"] = bytes_of(a.strides);
  d["typestr"] = "<f4";
  d["data"] = py::make_tuple(reinterpret_cast<uintptr_t>(a.data), true);  // read-only
  d["version"] = 3;
  d["stream"] = py::none();  // all work on it has ended
  return d;
}

// Where the numbers of a tensor begin that lie one behind the other, `length` of them each time, in order.
struct Runs {
  std::vector<int64_t> offsets;
  int64_t length = 1;

  explicit Runs(const dlpack::Tensor& t) {
    int64_t count = 1, row = 1;
    std::vector<int64_t> strides(size_t(t.ndim));
    for (int i = t.ndim; i-- > 0; row *= t.shape[i]) strides[size_t(i)] = t.strides ? t.strides[i] : row;
    int outer = t.ndim;
    while (outer > 0 && (t.shape[outer - 1] == 1 || strides[size_t(outer) - 1] == length)) length *= t.shape[--outer];
    for (int i = 0; i < outer; i++) count *= t.shape[i];
    for (int64_t n = 0; n < count; n++) {
      int64_t offset = 0, rest = n;
      for (int i = outer; i-- > 0; rest /= t.shape[i]) offset += rest % t.shape[i] * strides[size_t(i)];
      offsets.push_back(offset);
    }
  }
};

// The numbers of a capsule, whose memory stays its owner's.
py::array_t<float> numbers_of(rwkv::Engine& engine, const std::string& name, const py::capsule& capsule) {
  RWKV_CHECK(rwkv::StateError, std::string_view(capsule.name()) == "dltensor", "state: ", name,
             ": expected a DLPack capsule called dltensor, found ", capsule.name());
  const auto* managed = static_cast<const dlpack::Managed*>(capsule.get_pointer());
  const dlpack::Tensor& t = managed->tensor;
  RWKV_CHECK(rwkv::StateError, t.dtype.code == 2 && t.dtype.bits == 32 && t.dtype.lanes == 1, "state: ", name,
             ": expected float32, found DLPack's type ", int(t.dtype.code), " of ", int(t.dtype.bits), " bits");
  py::array_t<float> array(std::vector<py::ssize_t>(t.shape, t.shape + t.ndim));
  const auto* from = reinterpret_cast<const float*>(static_cast<const std::byte*>(t.data) + t.byte_offset);
  const std::span<float> to(array.mutable_data(), size_t(array.size()));
  const DeviceId device{DeviceId::Kind(t.device.kind), t.device.index};
  {
    const Unlocked unlocked;
    const Runs runs(t);
    const auto length = size_t(runs.length);
    for (size_t i = 0; i < runs.offsets.size(); i++)
      engine.read_device(device, from + runs.offsets[i], to.subspan(i * length, length));
  }
  return array;
}

}  // namespace

void bind_device(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray")
      .def_property_readonly("shape", [](const DeviceArray& a) { return tuple_of(a.shape); })
      .def_property_readonly("strides", [](const DeviceArray& a) { return bytes_of(a.strides); })
      .def_property_readonly("device",
                             [](const DeviceArray& a) { return py::make_tuple(int(a.device.kind), a.device.index); })
      .def("dlpack", dlpack_of)
      .def("cuda_interface", cuda_interface);
  m.def("numbers_of", numbers_of);
}
