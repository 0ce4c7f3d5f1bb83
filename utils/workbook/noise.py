"""Rounding noise on torch's operators: what another BLAS, thread count or GPU does to a result, simulated.

Another machine sums in another order and takes its exponentials from another library, so that every such result
differs in its last bits. Here each of them is multiplied by 1 + 3e-7·u, u uniform in [-1, 1] and drawn anew at each
call; double precision by 1 + 6e-16·u, the half types by their own rounding. Integers are exact everywhere.

The noise sits in torch's dispatcher, in place of the device's own kernel (`torch.library`), which it calls. A
`TorchDispatchMode` would see the same operators, but only on the thread that entered it, and it makes every operator
4 to 15 µs slower, views and copies too; a kernel is reached from every thread, under every other mode, in backward
passes, `torch.func` and inside composite operators (`F.linear`, `einsum`, `logsumexp`), and costs the others nothing.
"""

import random
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch

# About two and a half roundings.
SIZE = {torch.float64: 6e-16, torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PRODUCTS = """mm addmm bmm baddbmm addbmm mv addmv dot vdot addr _addmm_activation mkldnn_convolution
    _slow_conv2d_forward slow_conv3d_forward _slow_conv2d_backward slow_conv_transpose2d convolution_backward
    mkldnn_rnn_layer _native_multi_head_attention _transformer_encoder_layer_fwd
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward
    _scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward"""
SUMS = """sum nansum mean prod cumsum cumprod trace var std var_mean std_mean norm linalg_vector_norm renorm
    logsumexp _logcumsumexp _cdist_forward _cdist_backward _pdist_forward index_add scatter_add
    embedding_dense_backward _embedding_bag mse_loss smooth_l1_loss huber_loss binary_cross_entropy nll_loss_forward
    nll_loss2d_forward _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data native_layer_norm
    native_layer_norm_backward native_group_norm native_group_norm_backward native_batch_norm
    native_batch_norm_backward _native_batch_norm_legit"""
FUNCTIONS = """exp exp2 expm1 log log2 log10 log1p sqrt rsqrt pow sin cos tan asin acos atan atan2 sinh cosh tanh
    sigmoid log_sigmoid_forward silu gelu elu mish softplus erf erfc erfinv lgamma digamma logaddexp logaddexp2 xlogy
    tanh_backward sigmoid_backward log_sigmoid_backward silu_backward gelu_backward elu_backward mish_backward
    softplus_backward"""
FACTORISATIONS = """_linalg_svd _linalg_eigh linalg_eig _linalg_eigvals linalg_qr linalg_lu_factor_ex linalg_cholesky_ex
    _linalg_solve_ex linalg_inv_ex linalg_solve_triangular linalg_lstsq _linalg_det _linalg_slogdet
    linalg_matrix_exp"""
NAMES = f"{PRODUCTS} {SUMS} {FUNCTIONS} {FACTORISATIONS}".split()
FLOATS = (*SIZE, torch.complex64, torch.complex128)
KEYS = ("CPU", "CUDA") if torch.cuda.is_available() else ("CPU",)
# Noise is drawn once, for twice as many values; a call takes a stretch that begins at a place drawn anew.
STRETCH = 1 << 21

counts = Counter()  # operator → how many results got noise since the last start
_library = None


def start(seed: int, written_to: Path | None = None) -> None:
    """From now on every named operator of this process answers with noise.

    The course's own generators stay untouched: the noise has its own.

    Args:
        seed: another seed is another machine.
        written_to: in a notebook's kernel, a file that holds the number of noisy results after each cell.
    """
    global _library
    stop()
    draw = random.Random(seed)
    base = torch.rand(2 * STRETCH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    pools = {
        (dtype, key): (1 + SIZE[dtype.to_real()] * base).to(key.lower(), dtype.to_real())
        for dtype in FLOATS
        for key in KEYS
    }

    def factors(out, key):
        pool, n, place = pools[out.dtype, key], out.numel(), draw.randrange(STRETCH)
        if n > STRETCH:
            return pool[place : place + STRETCH].repeat(n // STRETCH + 1)[:n].view(out.shape)
        if out.is_contiguous():  # one call to torch, where a slice and its view are two
            return pool.as_strided(out.shape, out.stride(), place)
        return pool[place : place + n].view(out.shape)

    def noisy(name, overload, key, kernel):
        tensors = [isinstance(a.type, torch.TensorType) for a in overload._schema.arguments if not a.kwarg_only]

        def call(keys, *args, **kwargs):
            # Torch makes a 0-dimensional tensor of the 2 in `2**x` and hands it over as a number again.
            pairs = zip(args, tensors, strict=False)
            args = [torch.tensor(a) if of and isinstance(a, int | float | complex) else a for a, of in pairs]
            result = kernel.call_boxed(keys, *args, **kwargs)
            for out in result if isinstance(result, tuple | list) else (result,):
                if isinstance(out, torch.Tensor) and out.dtype in FLOATS and out.numel():
                    out.mul_(factors(out, key))
                    counts[name] += 1
            return result

        return call

    counts.clear()
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*other operators may also be overridden")
        for name, overload, key in _overloads():
            call = noisy(name, overload, key, torch.library.get_kernel(overload, key))
            _library.impl(overload.name().removeprefix("aten::"), call, key, with_keyset=True)
    if written_to:
        from IPython import get_ipython

        written_to.write_text("0")
        get_ipython().events.register("post_run_cell", lambda *_: written_to.write_text(str(counts.total())))


def stop() -> None:
    """Torch's own kernels again."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


@contextmanager
def noise(seed: int):
    """`start` for a while."""
    start(seed)
    try:
        yield counts
    finally:
        stop()


def _overloads():
    """(name, overload, device's key) of everything that computes by itself. What is composed of other operators
    (`linear`, `einsum`, the `sum` over all dimensions) is left out: its parts get the noise."""
    for key in KEYS:
        for packet in (getattr(torch.ops.aten, n, None) for name in NAMES for n in (name, f"{name}_")):
            overloads = [getattr(packet, o) for o in packet.overloads()] if packet else []
            own = [o for o in overloads if _has_kernel(o, key)]
            for overload in own or [o for o in overloads if _has_kernel(o, "CompositeExplicitAutograd")]:
                yield packet.__name__.removesuffix("_"), overload, key


def _has_kernel(overload, key: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), key)
    except RuntimeError:  # TorchScript's operators on Python numbers are not in the dispatcher
        return False


def kernel_profile(seed: int, folder: Path) -> dict[str, str]:
    """The environment under which a notebook's kernel starts with noise; `folder` holds its start-up file and, after
    each cell, the number of noisy results in `noisy_results`."""
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    written_to = folder / "noisy_results"
    (startup / "00-noise.py").write_text(
        f"from pathlib import Path\nfrom utils.workbook import noise\nnoise.start({seed}, Path({str(written_to)!r}))\n"
    )
    return {"IPYTHONDIR": str(folder)}
