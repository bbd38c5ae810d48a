"""The old place of `toolkit.ir.kernels`; removed in the next release."""

from toolkit.ir.kernels import BUILD as BUILD
from toolkit.ir.kernels import EXTENSION as EXTENSION
from toolkit.ir.kernels import FORMAT_VERSION as FORMAT_VERSION
from toolkit.ir.kernels import KERNELS as KERNELS
from toolkit.ir.kernels import Activation as Activation
from toolkit.ir.kernels import KernelMissingError as KernelMissingError
from toolkit.ir.kernels import Layer as Layer
from toolkit.ir.kernels import Pattern as Pattern
from toolkit.ir.kernels import available as available
from toolkit.ir.kernels import build as build
from toolkit.ir.kernels import build_checks as build_checks
from toolkit.ir.kernels import describe as describe
from toolkit.ir.kernels import extension as extension
from toolkit.ir.kernels import folder as folder
from toolkit.ir.kernels import format_version as format_version
from toolkit.ir.kernels import instruction_sets as instruction_sets
from toolkit.ir.kernels import isa as isa
from toolkit.ir.kernels import missing_tool as missing_tool
from toolkit.ir.kernels import pack as pack
from toolkit.ir.kernels import unpack as unpack
