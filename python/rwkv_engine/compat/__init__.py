"""The `rwkv` package's surface, without torch: its scripts run with one import changed.

>>> from rwkv_engine.compat import PIPELINE, PIPELINE_ARGS, RWKV
>>> model = RWKV("demo", "cpu fp32")
>>> logits, state = model.forward([1, 2, 3], None)
>>> logits.detach().cpu().numpy().shape
(1024,)

After `install` the package's own names serve as well: ``from rwkv.model import RWKV``.

Every version, RWKV-4 to 7, keeps the package's layout of its state and the package's rule of what
`forward` does to the list that it is passed; `State` and `RWKV.forward` say which. Defects of the
package that lose text or fail are mended; `PIPELINE` lists them.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

from ..errors import Error
from .model import RWKV
from .pipeline import PIPELINE, PIPELINE_ARGS
from .state import State
from .tensor import Tensor
from .vocabulary import TRIE_TOKENIZER

__all__ = [
    "PIPELINE",
    "PIPELINE_ARGS",
    "RWKV",
    "TRIE_TOKENIZER",
    "State",
    "Tensor",
    "install",
    "uninstall",
]

_NAMES: dict[str, tuple[type, ...]] = {
    "rwkv": (),
    "rwkv.model": (RWKV,),
    "rwkv.utils": (PIPELINE, PIPELINE_ARGS),
    "rwkv.rwkv_tokenizer": (TRIE_TOKENIZER,),
}
_installed: dict[str, types.ModuleType] = {}


def install() -> None:
    """Make ``from rwkv.model import RWKV`` and ``from rwkv.utils import PIPELINE`` find these.

    A second call changes nothing.

    Raises
    ------
    Error
        If the `rwkv` package itself was imported before: what holds its objects would keep them.

    Examples
    --------
    >>> import rwkv_engine.compat
    >>> rwkv_engine.compat.install()
    >>> from rwkv.model import RWKV
    >>> rwkv_engine.compat.uninstall()
    """
    strangers = [n for n in _NAMES if n in sys.modules and sys.modules[n] is not _installed.get(n)]
    if strangers:
        file = getattr(sys.modules[strangers[0]], "__file__", None)
        raise Error(
            f"compat.install: expected to be called before the rwkv package is imported, found "
            f"{', '.join(strangers)} imported from {file}"
        )
    if _installed:
        sys.modules.update(_installed)
        return
    for name, members in _NAMES.items():
        module = types.ModuleType(name, "The rwkv package's names, served by rwkv_engine.compat.")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=name == "rwkv")
        for member in members:
            setattr(module, member.__name__, member)
        _installed[name] = module
    package = _installed["rwkv"]
    package.__path__ = []
    for name, module in _installed.items():
        if module is not package:
            setattr(package, name.removeprefix("rwkv."), module)
    sys.modules.update(_installed)


def uninstall() -> None:
    """Undo `install`; the next ``import rwkv`` looks for the package again."""
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _installed.clear()
