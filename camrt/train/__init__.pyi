from .networks import Blob as Blob
from .networks import Network as Network
from .networks import network as network
from .solver import Solver as Solver
from .solver import SolverFile as SolverFile
from .solver import learning_rate as learning_rate
from .solver import read_solver as read_solver
from .weights import Report as Report
from .weights import load_caffemodel as load_caffemodel
from .weights import load_weights as load_weights
from .weights import save_caffemodel as save_caffemodel

__all__: list[str]

def require_torch() -> None: ...
