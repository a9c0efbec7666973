from converters import __version__ as __version__

from . import evaluate as evaluate
from . import graph as graph
from . import localize as localize
from . import train as train
from .errors import CamrtError as CamrtError
from .errors import CamrtWarning as CamrtWarning
from .evaluate.comparison import compare as compare
from .explainer import Explainer as Explainer
from .explanation import Explanation as Explanation
from .graph import differentiate as differentiate
from .graph import explain_graph as explain_graph
from .graph.methods import METHODS as METHODS
from .preprocess import Preprocess as Preprocess
from .render import Style as Style
from .session import Session as Session

__all__: list[str]
