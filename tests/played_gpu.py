"""A GPU played by the CPU: `with played_gpu("cuda"): model.to("cuda")...`.

Tensors that are there may not be mixed with those that are here, nor read as arrays. Apple's GPU,
"mps", takes no float64. Only who is where is played; what is computed is the CPU's.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

PLAYED = {"device": torch.device("cuda", 0)}
READS = {"numpy", "__array__"}
TAKES_INDICES = {"__getitem__", "__setitem__"}  # a GPU takes those of the CPU


def is_there(tensor) -> bool:
    return getattr(tensor, "_there", False)


def put(tensor, there=True):
    if there and PLAYED["device"].type == "mps" and tensor.dtype == torch.float64:
        raise TypeError("the MPS framework doesn't support float64")
    tensor._there = there
    return tensor


def asks_for(place) -> bool | None:
    """Whether a device, by object, name or a tensor on it, is the GPU; None: it names no device."""
    if isinstance(place, (str, torch.device)):
        return torch.device(place).type == PLAYED["device"].type
    return is_there(place) if isinstance(place, torch.Tensor) else None


def without_place(args, kwargs):
    """Arguments of `to` apart: (what is asked for, as `asks_for` has it; other args; kwargs).

    Of a tensor among them its kind is left.
    """
    given = [part for part in (*args, kwargs.get("device")) if part is not None]
    place = next((asks_for(part) for part in given if asks_for(part) is not None), None)
    rest = [
        part.dtype if isinstance(part, torch.Tensor) else part
        for part in given
        if not isinstance(part, (str, torch.device))
    ]
    return place, rest, {name: value for name, value in kwargs.items() if name != "device"}


class PlayedGPU(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "__deepcopy__":
            return put(func(*args), is_there(args[0]))
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func == torch.Tensor.device.__get__:
            return PLAYED["device"] if is_there(args[0]) else func(*args)
        if name == "to" and isinstance(args[0], torch.Tensor):
            return self.move(func, args, kwargs)
        if name == "cpu":
            return args[0].clone() if is_there(args[0]) else args[0]
        if name in READS and any(map(is_there, tensors)):
            raise TypeError("can't convert a GPU's tensor to numpy")
        wanted = asks_for(kwargs.get("device"))
        if wanted is not None:  # of a factory
            out = func(*args, **kwargs | {"device": "cpu"})
            return put(out, wanted)
        where = {is_there(tensor) for tensor in tensors if tensor.ndim}
        if len(where) > 1 and not (name in TAKES_INDICES and is_there(args[0])) and name != "copy_":
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        out = func(*args, **kwargs)
        if any(map(is_there, tensors)) and name not in ("__set__", "__get__"):
            tree_map(lambda leaf: put(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
        elif name == "__get__" and isinstance(out, torch.Tensor):
            put(out, is_there(args[0]))  # .data, .grad, .T
        return out

    @staticmethod
    def move(func, args, kwargs):
        tensor = args[0]
        place, rest, kwargs = without_place(args[1:], kwargs)
        out = func(tensor, *rest, **kwargs) if rest or kwargs else tensor
        place = is_there(tensor) if place is None else place
        return put(out.clone() if out is tensor and place != is_there(tensor) else out, place)


def move_module(module, *args, **kwargs):
    """`nn.Module.to` with the device played."""
    place, rest, kwargs = without_place(args, kwargs)
    before = {name: is_there(tensor) for name, tensor in tensors_of(module)}
    with torch._C.DisableTorchFunction():
        module = MOVE(module, *rest, **kwargs) if rest or kwargs else module
    for name, tensor in tensors_of(module):  # a buffer may be another object now
        put(tensor, before[name] if place is None else place)
    return module


def tensors_of(module):
    return [*module.named_parameters(), *module.named_buffers()]


MOVE, COPY = nn.Module.to, nn.Parameter.__deepcopy__


@contextmanager
def played_gpu(kind="cuda"):
    PLAYED["device"] = torch.device(kind, 0)
    nn.Module.to, nn.Parameter.__deepcopy__ = (
        move_module,
        lambda self, memo: put(COPY(self, memo), is_there(self)),
    )
    try:
        with PlayedGPU():
            yield
    finally:
        nn.Module.to, nn.Parameter.__deepcopy__ = MOVE, COPY
