from .conversion import convert as convert
from .errors import ConversionError as ConversionError
from .errors import ConversionWarning as ConversionWarning
from .layer import Layer as Layer
from .net import Input as Input
from .net import Net as Net
from .net import read_net as read_net
from .registry import handles as handles
from .registry import load_plugin as load_plugin

__version__: str
__all__: list[str]
