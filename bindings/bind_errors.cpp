// Every rwkv::Error becomes the class of the same name in rwkv_engine.errors.
#include "bind.h"
#include "core/error.h"

namespace {

void raise(const char* kind, const rwkv::Error& error) {
  PyErr_SetObject(py::module_::import("rwkv_engine.errors").attr(kind).ptr(), text_of(error.what()).ptr());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const rwkv::ModelFormatError& e) {
      raise("ModelFormatError", e);
    } catch (const rwkv::StateError& e) {
      raise("StateError", e);
    } catch (const rwkv::StrategyError& e) {
      raise("StrategyError", e);
    } catch (const rwkv::DeviceError& e) {
      raise("DeviceError", e);
    } catch (const rwkv::NonFiniteError& e) {
      raise("NonFiniteError", e);
    } catch (const rwkv::ConcurrentUseError& e) {
      raise("ConcurrentUseError", e);
    } catch (const rwkv::Error& e) {
      raise("Error", e);
    }
  });
}
