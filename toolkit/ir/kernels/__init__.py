"""The native sparse kernels: build for the installed OpenVINO (`library`), C interface (the other modules).

One build produces two libraries. The kernels library packs and multiplies matrices; the OpenVINO extension offers the
same code to any OpenVINO application as the operations `SparseLinear`, `SparseEncoder` and `EmbeddingSum`. An extension
fits one OpenVINO release only.
"""

from toolkit.ir.kernels.embeddings import embedding_sum as embedding_sum
from toolkit.ir.kernels.encoder import Encoder as Encoder
from toolkit.ir.kernels.encoder import EncoderLayer as EncoderLayer
from toolkit.ir.kernels.library import BUILD as BUILD
from toolkit.ir.kernels.library import EXTENSION as EXTENSION
from toolkit.ir.kernels.library import KERNELS as KERNELS
from toolkit.ir.kernels.library import KernelMissingError as KernelMissingError
from toolkit.ir.kernels.library import available as available
from toolkit.ir.kernels.library import build as build
from toolkit.ir.kernels.library import build_checks as build_checks
from toolkit.ir.kernels.library import extension as extension
from toolkit.ir.kernels.library import folder as folder
from toolkit.ir.kernels.library import missing_tool as missing_tool
from toolkit.ir.kernels.library import rebuild as rebuild
from toolkit.ir.kernels.packed import COLUMNS_OF_FLOATS as COLUMNS_OF_FLOATS
from toolkit.ir.kernels.packed import EXPORT_VERSION as EXPORT_VERSION
from toolkit.ir.kernels.packed import FORMAT_VERSION as FORMAT_VERSION
from toolkit.ir.kernels.packed import Activation as Activation
from toolkit.ir.kernels.packed import Layer as Layer
from toolkit.ir.kernels.packed import Pattern as Pattern
from toolkit.ir.kernels.packed import describe as describe
from toolkit.ir.kernels.packed import format_version as format_version
from toolkit.ir.kernels.packed import instruction_sets as instruction_sets
from toolkit.ir.kernels.packed import isa as isa
from toolkit.ir.kernels.packed import pack as pack
from toolkit.ir.kernels.packed import unpack as unpack
