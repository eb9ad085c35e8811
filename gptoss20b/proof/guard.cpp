// What PyTorch's CPU build lacks for tensors on a CUDA device that does not exist: a device guard, which autograd asks for,
// and hooks that say CUDA is built, which FakeTensorMode asks for. Both do nothing. Loading the library installs them.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

const Device device(DeviceType::CUDA, 0);
const Stream stream(Stream::DEFAULT, device);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return device; }
  Device getDevice() const override { return device; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return stream; }
  Stream getDefaultStream(Device) const override { return stream; }
  Stream getStreamFromGlobalPool(Device, bool = false) const override { return stream; }
  Stream getNewStream(Device, int = 0) const override { return stream; }
  Stream exchangeStream(Stream) const override { return stream; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  // An event only has to be something: any address will do.
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return false; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  void init() const override {}
  DeviceIndex current_device() const override { return 0; }
};

// PyTorch creates its hooks once and keeps a reference. So the object stays, and its virtual table becomes this one's.
struct InstallHooks {
  InstallHooks() {
    static Hooks hooks;
    auto& installed = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
    *reinterpret_cast<void**>(&installed) = *reinterpret_cast<void**>(&hooks);
  }
} install_hooks;

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, ::Guard);
}
