"""Names in pickles that are neither tensors nor a danger: passed over, or refused with a reason.

What is passed over becomes the text of its name: it is neither imported nor made, and what the
pickle gives it is left out. The list is closed; every other name is refused.
"""


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_KINDS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
_EIGHT_BITS = "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_DICTS = "AttributeDict Config ConfigDict Dict EasyDict CfgNode"  # settings of a training

PASSED_OVER = {
    *_names("argparse", "Namespace"),
    *_names("builtins", "bool bytearray complex dict Ellipsis float int list long NotImplemented"),
    *_names("builtins", "object range slice str tuple type unicode xrange"),
    *_names("collections", "ChainMap UserDict UserList UserString deque"),
    *_names("datetime", "date datetime time timedelta timezone"),
    *_names("decimal", "Decimal"),
    *_names("fractions", "Fraction"),
    *_names("numpy", f"{_KINDS} bool bool_ complex64 complex128 longlong ulonglong str_ bytes_"),
    *_names("numpy.random._mt19937", "MT19937"),
    *_names("numpy.random._pcg64", "PCG64 PCG64DXSM"),
    *_names("numpy.random._pickle", "__bit_generator_ctor __generator_ctor __randomstate_ctor"),
    *_names("numpy.random.bit_generator", "SeedSequence __pyx_unpickle_SeedSequence"),
    *(name for module in ("pathlib", "pathlib._local") for name in _names(module, _PATHS)),
    *_names("torch", "Generator Tensor device"),
    *_names("torch", f"{_KINDS} {_EIGHT_BITS} bfloat16 bool complex32 complex64 complex128"),
    *_names("torch", "qint8 qint32 quint8 quint4x2 quint2x4"),
    *_names("torch", "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc _mkldnn"),
    *_names("torch", "channels_last channels_last_3d contiguous_format preserve_format"),
    *_names("torch", "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric"),
    *_names("torch", "per_tensor_affine per_tensor_symmetric"),
    *_names("torch._C", "Generator"),
    *_names("torch.nn.parameter", "Buffer Parameter"),
    *_names("torch.serialization", "_get_layout"),
    *_names("torch.torch_version", "TorchVersion"),
    *_names("types", "SimpleNamespace"),
    *_names("uuid", "SafeUUID UUID"),
    *_names("UserDict", "IterableUserDict UserDict"),
    *_names("addict.addict", _DICTS),
    *_names("easydict", _DICTS),
    *_names("mmcv.utils.config", _DICTS),
    *_names("mmengine.config.config", _DICTS),
    *_names("ml_collections.config_dict.config_dict", _DICTS),
    *_names("pytorch_lightning.utilities.parsing", _DICTS),
    *_names("lightning.pytorch.utilities.parsing", _DICTS),
    *_names("lightning_fabric.utilities.data", _DICTS),
    *_names("lightning.fabric.utilities.data", _DICTS),
    *_names("yacs.config", _DICTS),
}

_SAVE = 'torch.save(model.state_dict(), "weights.pth")'
_PLAIN = "which PyTorch itself loads, but is no plain tensor"
# What PyTorch's safe list holds and this reader does not: what it is, and how to do without.
_KNOWN = {
    "torch._utils._rebuild_qtensor": ("a quantised tensor", "save the float network"),
    "torch._utils._rebuild_sparse_tensor": ("a sparse tensor", "save its `to_dense()`"),
    "torch._utils._rebuild_nested_tensor": ("a nested tensor", "save its `unbind()`"),
    "torch._utils._rebuild_wrapper_subclass": ("a tensor of a subclass", "save a plain copy"),
    "torch._utils._rebuild_meta_tensor_no_storage": (
        "a tensor without values (device meta)",
        "save it once its weights are loaded",
    ),
    "torch.distributed.tensor.DTensor": (
        "a tensor that is spread over devices",
        "save its `full_tensor()`",
    ),
}


def why_refused(name: str, untrusted: str) -> tuple[str, str]:
    """Returns what to say of a name that is refused, and the fix; `untrusted` for a stranger's."""
    if name in _KNOWN:
        what, fix = _KNOWN[name]
        return f"{what}, {_PLAIN}", f"in PyTorch, {fix}, or the weights alone: {_SAVE}"
    if name.startswith("torch.") and name.endswith("Storage"):
        return "which holds a type of number that weights do not have", f"in PyTorch: {_SAVE}"
    if name.startswith(("torch.nn.", "torchvision.models.")):
        return "a part of a whole model instead of its weights", f"in PyTorch: {_SAVE}"
    if name.startswith(("torch.optim.", "torch.amp.", "torch.distributed.", "numpy.")):
        return "which belongs to no weights", f"in PyTorch, save the weights alone: {_SAVE}"
    return "which no tensor needs", untrusted
