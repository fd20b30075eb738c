// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
//
// A device for tests that computes on the CPU and behaves like an accelerator plug-in.
//
// Device tensors own host memory. Every operator runs on CPU aliases of its arguments: tensors over
// the same bytes. PyTorch's own fallback copies instead, and then loses what an operator writes
// into arguments that its schema does not mark, such as the running statistics of BatchNorm.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::Storage;
using c10::Stream;
using torch::jit::Stack;
using Clock = std::chrono::steady_clock;
using WaitHook = void (*)(const char*);
constexpr c10::DeviceType kFake = c10::DeviceType::PrivateUse1;

// ---- settings and counters ------------------------------------------------------------------

struct State {
  DeviceIndex count = 2;
  bool saturate = false;      // float16 overflows to 65504, NaN becomes 0
  int64_t memory_limit = 0;   // bytes, 0: none
  std::atomic<bool> overflow{false};
  std::atomic<int64_t> live{0}, peak{0};
  std::atomic<WaitHook> wait_hook{nullptr};
  std::mutex mutex;
  std::map<std::string, int64_t> operators, copies, waits;
  std::set<const void*> pinned;
};

// Never destroyed: tensors may outlive static destructors.
State& state() {
  static State* instance = new State;
  return *instance;
}

thread_local DeviceIndex current_index = 0;

void count_operator(const std::string& name) {
  std::lock_guard<std::mutex> lock(state().mutex);
  state().operators[name]++;
}

void count_copy(const char* kind) {
  std::lock_guard<std::mutex> lock(state().mutex);
  state().copies[kind]++;
}

// The host stands still until the device has caught up: on real hardware this costs time.
void count_wait(const char* kind) {
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().waits[kind]++;
  }
  if (WaitHook hook = state().wait_hook) hook(kind);
}

void charge(size_t bytes) {
  State& s = state();
  const int64_t limit = s.memory_limit, size = static_cast<int64_t>(bytes);
  if (limit != 0 && s.live + size > limit) {
    const std::string text = c10::str("out of memory. Tried to allocate ", size, " bytes with ",
                                      s.live.load(), " of ", limit, " bytes in use");
    // torch_npu's allocator has no type for it, torch_mlu's has PyTorch's.
    TORCH_CHECK(c10::get_privateuse1_backend() != "npu", "NPU ", text);
    TORCH_CHECK_WITH(OutOfMemoryError, false, "fake device ", text);
  }
  const int64_t now = s.live += size;
  int64_t peak = s.peak;
  while (now > peak && !s.peak.compare_exchange_weak(peak, now)) {}
}

void release(size_t bytes) { state().live -= static_cast<int64_t>(bytes); }

// ---- allocators -----------------------------------------------------------------------------

void* host_memory(size_t bytes) {
  void* memory = nullptr;
  TORCH_CHECK(bytes == 0 || posix_memalign(&memory, 64, bytes) == 0, "out of host memory");
  return memory;
}

struct DeviceBlock { void* memory; size_t bytes; };

void free_device_block(void* context) {
  auto* block = static_cast<DeviceBlock*>(context);
  release(block->bytes);
  std::free(block->memory);
  delete block;
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    charge(bytes);
    void* memory = host_memory(bytes);
    return {memory, new DeviceBlock{memory, bytes}, &free_device_block,
            Device(kFake, current_index)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(kFake, &device_allocator);

void free_pinned(void* memory) {
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().pinned.erase(memory);
  }
  std::free(memory);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = host_memory(bytes == 0 ? 1 : bytes);
    std::lock_guard<std::mutex> lock(state().mutex);
    state().pinned.insert(memory);
    return {memory, memory, &free_pinned, Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
PinnedAllocator pinned_allocator;

// ---- guard and hooks: how PyTorch drives a device -------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kFake; }
  Device exchangeDevice(Device device) const override {
    Device old(kFake, current_index);
    setDevice(device);
    return old;
  }
  Device getDevice() const override { return Device(kFake, current_index); }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < state().count, "invalid device ordinal: ", device, " of ",
                static_cast<int>(state().count));
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current_index = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return state().count; }
  // There is one stream: everything is done in the order in which it is asked for.
  Stream getStream(Device device) const noexcept override {
    return Stream(Stream::DEFAULT, indexed(device));
  }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream getNewStream(Device device, int) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override { count_wait("synchronize"); }
  void synchronizeDevice(const DeviceIndex) const override { count_wait("synchronize"); }
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Clock::time_point;
    *static_cast<Clock::time_point*>(*event) = Clock::now();
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override { count_wait("synchronize"); }
  double elapsedTime(void* from, void* to, const DeviceIndex) const override {
    return std::chrono::duration<double, std::milli>(*static_cast<Clock::time_point*>(to) -
                                                     *static_cast<Clock::time_point*>(from))
        .count();
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Clock::time_point*>(event);
  }

 private:
  static Device indexed(Device device) {
    return device.has_index() ? device : Device(kFake, current_index);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return state().count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return state().count; }
  void setCurrentDevice(DeviceIndex index) const override { current_index = index; }
  DeviceIndex getCurrentDevice() const override { return current_index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    const DeviceIndex old = current_index;
    if (index >= 0) current_index = index;
    return old;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* memory) const override {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().pinned.count(memory) != 0;
  }
  Device getDeviceFromPtr(void*) const override { return Device(kFake, current_index); }
  // The CPU's generator, so that random numbers equal those of a run on the CPU.
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    c10::DataPtr data = device_allocator.allocate(bytes);
    const size_t kept = std::min(bytes, static_cast<size_t>(impl->nbytes()));
    if (kept != 0) std::memcpy(data.get(), impl->data(), kept);
    impl->set_data_ptr_noswap(std::move(data));
    impl->set_nbytes(bytes);
  }
};

// ---- aliases --------------------------------------------------------------------------------

struct SharedStorage { Storage storage; size_t charged; };

void drop_shared_storage(void* context) {
  auto* shared = static_cast<SharedStorage*>(context);
  release(shared->charged);
  delete shared;
}

Storage alias_storage(const Storage& storage, Device device) {
  const bool to_device = device.type() == kFake;
  const size_t charged = to_device ? storage.nbytes() : 0;
  charge(charged);
  c10::DataPtr data(storage.mutable_data(), new SharedStorage{storage, charged},
                    &drop_shared_storage, device);
  c10::Allocator* allocator =
      to_device ? &device_allocator : c10::GetAllocator(c10::kCPU);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator,
                 /*resizable=*/true);
}

at::Tensor tensor_over(Storage storage, DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key),
                                                         like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                      like.storage_offset());
  return tensor;
}

bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kFake;
}

at::Tensor cpu_alias(const at::Tensor& tensor) {
  if (!on_device(tensor)) return tensor;
  auto alias = tensor_over(alias_storage(tensor.storage(), Device(c10::kCPU)), DispatchKey::CPU,
                           tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number())
    alias.unsafeGetTensorImpl()->set_wrapped_number(true);
  return alias;
}

at::Tensor device_alias(const at::Tensor& tensor, Device device) {
  if (!tensor.defined() || !tensor.is_cpu()) return tensor;
  if (!device.has_index()) device = Device(kFake, current_index);
  return tensor_over(alias_storage(tensor.storage(), device), DispatchKey::PrivateUse1, tensor);
}

// What the arithmetic of a saturating device leaves in a float16 result.
void saturate(const at::Tensor& tensor) {
  if (!state().saturate || !tensor.defined() || !tensor.is_cpu() ||
      tensor.scalar_type() != at::kHalf || tensor.numel() == 0)
    return;
  if (at::isfinite(tensor).all().item<bool>()) return;
  state().overflow = true;
  tensor.copy_(at::nan_to_num(tensor, 0.0, 65504.0, -65504.0));
}

// ---- the operator that stands for all others ------------------------------------------------

bool host_waits_for(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::_local_scalar_dense", "aten::equal",      "aten::nonzero",
      "aten::masked_select",       "aten::_unique",    "aten::_unique2",
      "aten::unique_dim",          "aten::unique_consecutive"};
  return names.count(name) != 0;
}

// One call of an operator: replaces device tensors by CPU aliases and turns the results back.
class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack* stack) : op_(op), stack_(stack) {}

  void run() {
    const auto& arguments = op_.schema().arguments();
    const size_t first = stack_->size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) lower((*stack_)[first + i], arguments[i]);
    op_.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack_);
    for (const at::Tensor& tensor : written_) saturate(tensor);
    for (auto& pair : pairs_) take_over_new_shape(pair);
    const size_t results = op_.schema().returns().size();
    for (size_t i = stack_->size() - results; i < stack_->size(); ++i) raise((*stack_)[i]);
  }

 private:
  struct Pair { at::Tensor device, cpu; };

  at::Tensor lower(const at::Tensor& tensor, bool is_written) {
    if (!on_device(tensor)) return tensor;
    if (!target_.has_index()) target_ = tensor.device();
    pairs_.push_back({tensor, cpu_alias(tensor)});
    if (is_written) written_.push_back(pairs_.back().cpu);
    return pairs_.back().cpu;
  }

  void lower(c10::IValue& value, const c10::Argument& argument) {
    const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    if (value.isTensor()) {
      value = lower(value.toTensor(), written);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const auto& tensor : value.toTensorVector()) list.push_back(lower(tensor, written));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& tensor : value.toOptionalTensorVector())
        list.push_back(tensor.has_value() ? std::optional<at::Tensor>(lower(*tensor, written))
                                          : tensor);
      value = list;
    } else if (value.isDevice() && value.toDevice().type() == kFake) {
      target_ = value.toDevice();
      value = Device(c10::kCPU);
    }
  }

  // An operator may have given one of its arguments another shape or other memory.
  void take_over_new_shape(Pair& pair) {
    auto* impl = pair.device.unsafeGetTensorImpl();
    if (pair.cpu.storage().data() != pair.device.storage().data())
      impl->set_storage_keep_dtype(alias_storage(pair.cpu.storage(), pair.device.device()));
    if (pair.cpu.sizes() != pair.device.sizes() || pair.cpu.strides() != pair.device.strides() ||
        pair.cpu.storage_offset() != pair.device.storage_offset())
      impl->set_sizes_and_strides(pair.cpu.sizes(), pair.cpu.strides(), pair.cpu.storage_offset());
  }

  at::Tensor raise(const at::Tensor& result) {
    if (!result.defined() || !result.is_cpu()) return result;
    for (auto& pair : pairs_)
      if (result.unsafeGetTensorImpl() == pair.cpu.unsafeGetTensorImpl()) return pair.device;
    const auto* storage = result.storage().unsafeGetStorageImpl();
    for (auto& pair : pairs_) {
      if (storage != pair.cpu.storage().unsafeGetStorageImpl()) continue;
      auto view = at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, Storage(pair.device.storage()), pair.device.key_set(),
          result.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(),
                                                        result.storage_offset());
      return view;
    }
    saturate(result);
    auto raised = device_alias(result, target_);
    pairs_.push_back({raised, result});  // two results may share their memory
    return raised;
  }

  void raise(c10::IValue& value) {
    if (value.isTensor()) {
      value = raise(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const auto& tensor : value.toTensorVector()) list.push_back(raise(tensor));
      value = list;
    }
  }

  const c10::OperatorHandle& op_;
  Stack* stack_;
  std::vector<Pair> pairs_;
  std::vector<at::Tensor> written_;
  Device target_{kFake, -1};
};

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  at::AutoDispatchBelowAutograd guard;
  count_operator(toString(op.operator_name()));
  if (host_waits_for(op.schema().name())) count_wait(op.schema().name().c_str());
  Call(op, stack).run();
}

// ---- operators without a CPU kernel to fall back to -----------------------------------------

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  count_operator("aten::_copy_from");
  if (on_device(from) && !on_device(to)) {
    count_copy("device_to_host");
    if (!non_blocking) count_wait("device_to_host");
  } else if (!on_device(from)) {
    count_copy(from.is_pinned() && non_blocking ? "host_to_device" : "host_to_device_blocking");
  }
  const at::Tensor target = cpu_alias(to);
  target.copy_(cpu_alias(from));
  if (on_device(to)) saturate(target);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor& set_storage(at::Tensor& tensor, Storage storage, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  std::vector<int64_t> strides(stride.begin(), stride.end());
  if (strides.size() != size.size()) {
    strides.assign(size.size(), 1);
    for (size_t k = size.size(); k-- > 1;) strides[k - 1] = strides[k] * size[k];
  }
  impl->set_sizes_and_strides(size, strides, offset);
  return tensor;
}

at::Tensor& set_whole_storage(at::Tensor& tensor, Storage storage) {
  const auto length = static_cast<int64_t>(storage.nbytes() / tensor.dtype().itemsize());
  return set_storage(tensor, std::move(storage), 0, {length}, {1});
}

at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source) {
  return set_storage(tensor, source.storage(), source.storage_offset(), source.sizes(),
                     source.strides());
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
                       c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef output_padding, int64_t groups) {
  at::AutoDispatchBelowAutograd guard;
  count_operator("aten::convolution_overrideable");
  std::optional<at::Tensor> lowered;
  if (bias.has_value() && bias->defined()) lowered = cpu_alias(*bias);
  auto result = at::convolution(cpu_alias(input), cpu_alias(weight), lowered, stride, padding,
                                dilation, transposed, output_padding, groups);
  saturate(result);
  return device_alias(result, input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
    c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  at::AutoDispatchBelowAutograd guard;
  count_operator("aten::convolution_backward_overrideable");
  const std::vector<int64_t> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  auto [a, b, c] =
      at::convolution_backward(cpu_alias(grad), cpu_alias(input), cpu_alias(weight), bias, stride,
                               padding, dilation, transposed, output_padding, groups, mask);
  for (const auto& result : {a, b, c}) saturate(result);
  const Device device = input.device();
  return {device_alias(a, device), device_alias(b, device), device_alias(c, device)};
}

// On a saturating device nothing is ever infinite, so the check of PyTorch's scaler finds nothing.
void check_and_unscale(at::TensorList grads, at::Tensor& found_inf, const at::Tensor& inv_scale) {
  at::AutoDispatchBelowAutograd guard;
  count_operator("aten::_amp_foreach_non_finite_check_and_unscale_");
  std::vector<at::Tensor> lowered;
  for (const auto& grad : grads) lowered.push_back(cpu_alias(grad));
  auto found = cpu_alias(found_inf);
  if (state().saturate) found = found.clone();
  at::_amp_foreach_non_finite_check_and_unscale_(lowered, found, cpu_alias(inv_scale));
}

void record_stream(at::Tensor&, Stream) { count_operator("aten::record_stream"); }

// ---- what the Python part calls -------------------------------------------------------------

void configure(int64_t count, bool saturates, int64_t memory_limit) {
  State& s = state();
  s.count = static_cast<DeviceIndex>(count);
  s.saturate = saturates;
  s.memory_limit = memory_limit;
}

void set_device(int64_t index) {
  TORCH_CHECK(index >= 0 && index < state().count, "invalid device ordinal ", index);
  current_index = static_cast<DeviceIndex>(index);
}

c10::Dict<std::string, int64_t> counters(const std::string& kind) {
  State& s = state();
  std::lock_guard<std::mutex> lock(s.mutex);
  c10::Dict<std::string, int64_t> result;
  const auto& source =
      kind == "operators" ? s.operators : kind == "copies" ? s.copies : s.waits;
  for (const auto& [name, count] : source) result.insert(name, count);
  return result;
}

bool take_overflow() { return state().overflow.exchange(false); }

const bool hooks_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace

// Called with the kind of every wait of the host, so that Python can note who waited.
extern "C" __attribute__((visibility("default"))) void fakeacc_set_wait_hook(WaitHook hook) {
  state().wait_hook = hook;
}

TORCH_LIBRARY(fakeacc, m) {
  m.def("configure", configure);
  m.def("set_device", set_device);
  m.def("current_device", [] { return static_cast<int64_t>(current_index); });
  m.def("device_count", [] { return static_cast<int64_t>(state().count); });
  m.def("cpu_alias", cpu_alias);
  m.def("memory_allocated", [] { return state().live.load(); });
  m.def("max_memory_allocated", [] { return state().peak.load(); });
  m.def("reset_peak_memory", [] { state().peak = state().live.load(); });
  m.def("counters", counters);
  m.def("count_wait", [](const std::string& kind) { count_wait(kind.c_str()); });
  m.def("take_overflow", take_overflow);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("_amp_foreach_non_finite_check_and_unscale_", check_and_unscale);
  m.impl("record_stream", record_stream);
}

// Autocast with the operator lists that cuda uses (without norm).
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define FAKE_LOW(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FAKE_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FAKE_FP32_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define FAKE_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(FAKE_LOW)
  AT_FORALL_FP32(FAKE_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(FAKE_FP32_DTYPE)
  AT_FORALL_PROMOTE(FAKE_PROMOTE)
}
