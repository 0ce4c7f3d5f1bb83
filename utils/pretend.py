"""A second device that is the CPU in disguise: what a GPU refuses, found without one.

`start()` registers a device named `pretend` with torch. A tensor on it computes on the
CPU, with the CPU's random numbers and results, but can't be mixed with a tensor that is
not on it: an operator raises what CUDA would, and so do `numpy()` and a CPU generator.
`WORKBOOK_DEVICE=pretend` then runs a chapter there, so that a missing `device=` shows.

As on a GPU, a CPU tensor without dimensions may take part, and an index may lie on the
CPU.
"""

import torch
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
# Their tensors may lie on two devices.
BETWEEN = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
_library = None


class _Disguised(type(torch.Tensor)):
    """transformer_lens asserts that `type(x) == torch.Tensor`."""

    def __eq__(cls, other):
        return cls is other or other is torch.Tensor

    __hash__ = type.__hash__


class PretendTensor(torch.Tensor, metaclass=_Disguised):
    """A tensor on the device `pretend`; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )
        out.inner = inner
        return out

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        # Torch itself would fetch the index from the other device.
        if func is torch.Tensor.__getitem__ and args[0].device.type != NAME:
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed "
                "tensor (cpu)"
            )
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func._can_decompose():  # torch leaves that to us in inference mode
            return func.decompose(*args, **kwargs)
        refuse_mixture(func, args, kwargs)
        stays, asked = True, kwargs.get("device")
        if asked is not None:
            stays, kwargs["device"] = torch.device(asked).type == NAME, "cpu"
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, cls)]
        outer = {id(t.inner): t for t in given}
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))

        def wrap(t):
            if not isinstance(t, torch.Tensor) or isinstance(t, cls):
                return t
            if id(t) in outer:
                found = outer[id(t)]
                if found.shape != t.shape:  # an `out=` that was resized
                    torch.Tensor.data.__set__(found, cls(t))
                return found
            if not stays:
                return t
            # Of a tensor from outside, also inference mode makes an ordinary view.
            with torch.inference_mode(t.is_inference()):
                return cls(t)

        return tree_map(wrap, out)

    def numpy(self, *args, **kwargs):
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to "
            "copy the tensor to host memory first."
        )

    def __array__(self, *args, **kwargs):
        self.numpy()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __deepcopy__(self, memo):
        copied = PretendTensor(self.inner.detach().clone())
        out = memo[id(self)] = copied.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            out._is_param = True
        return out

    def __reduce_ex__(self, protocol):
        # As torch packs tensors of a device that has no storage: nothing of this class,
        # whose module holds what can't be packed, travels with a trace. A part brings
        # its whole along, as on a GPU.
        inner, needs = self.inner.detach(), self.requires_grad
        arguments = inner, self.dtype, str(self.device), needs
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        return self.inner.detach().tolist()

    def __repr__(self, **kwargs):
        return repr(self.inner)

    def __format__(self, spec):
        return format(self.detach().inner, spec)


def _inner(value):
    return value.inner if isinstance(value, PretendTensor) else value


def refuse_mixture(func, args, kwargs) -> None:
    """
    Raises:
        RuntimeError: tensors lie on two devices, or the random numbers of one are asked
            from the other's generator.
    """
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type != NAME:
        raise RuntimeError(
            f"Expected a '{NAME}' device type for generator but found "
            f"'{generator.device.type}'"
        )
    if func in BETWEEN:
        return
    if func in INDEXING and isinstance(args[0], PretendTensor):
        args = (args[0], *args[2:])  # the indices may lie on the CPU
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
    elsewhere = [t for t in tensors if not isinstance(t, PretendTensor)]
    if len(elsewhere) < len(tensors) and any(t.dim() for t in elsewhere):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two "
            f"devices, {NAME}:0 and cpu! (in {func})"
        )


def start() -> None:
    """Register the device; from now on `torch.device("pretend")` is one."""
    global _library
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    _setup_privateuseone_for_python_backend(NAME)
    _library = torch.library.Library("aten", "IMPL")
    for name, kernel in (
        ("empty.memory_format", _empty),
        ("empty_strided", _empty_strided),
        ("_copy_from", _copy_from),
    ):
        _library.impl(name, kernel, "PrivateUse1")


def _empty(
    size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None
):
    memory_format = memory_format or torch.contiguous_format
    return PretendTensor(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    _inner(target).copy_(_inner(source))
    return target
