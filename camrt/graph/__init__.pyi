from . import methods as methods
from . import rules as rules
from .explain import explain_graph as explain_graph
from .gradient import differentiate as differentiate
from .opening import open_model as open_model
from .static import cuda_graph_obstacles as cuda_graph_obstacles
from .static import with_fixed_batch as with_fixed_batch
from .view import GraphView as GraphView

__all__: list[str]
