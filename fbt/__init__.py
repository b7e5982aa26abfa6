"""The Feedback Transformer (Fan et al. 2020, arXiv 2002.09402), exact and readable.

    import fbt

    model = fbt.LanguageModel.from_pretrained("tiny-shakespeare")
    print(model.generate("ROMEO:", 300, temperature=0.8, seed=1))

Start with `LanguageModel` and `Config`. `fbt.show(obj)` displays the source of any
object of the package.
"""

from fbt import tasks
from fbt.config import Config
from fbt.corpus import load_tiny_shakespeare
from fbt.engines import build_native
from fbt.feedback import FeedbackBody
from fbt.language_model import LanguageModel
from fbt.parallel import ParallelBody
from fbt.shared_kv import SharedKVBody
from fbt.stack import MemoryStack, TorchStack
from fbt.state import State
from fbt.subwords import SubwordTokenizer
from fbt.tokenizer import CharTokenizer, Tokenizer
from fbt.training import Recipe, Run, evaluate, resume, train
from fbt.views.explorer import AttentionExplorer
from fbt.views.live import LiveModel
from fbt.views.source import show

__version__ = "0.2.0"

__all__ = [
    "AttentionExplorer",
    "CharTokenizer",
    "Config",
    "FeedbackBody",
    "LanguageModel",
    "LiveModel",
    "MemoryStack",
    "ParallelBody",
    "Recipe",
    "Run",
    "SharedKVBody",
    "State",
    "SubwordTokenizer",
    "Tokenizer",
    "TorchStack",
    "build_native",
    "evaluate",
    "load_tiny_shakespeare",
    "resume",
    "show",
    "tasks",
    "train",
]


def __dir__() -> list[str]:
    # Completion then lists `Config` and `State`, but not the modules of these names.
    return ["__version__", *__all__]
