"""The old place of `toolkit.ir.kernels`; goes with the next release."""

from toolkit.ir.kernels.build import available as available
from toolkit.ir.kernels.build import build as build
from toolkit.ir.kernels.build import extension as extension
