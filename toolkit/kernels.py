"""The old place of `toolkit.ir.kernels`; goes with the next release."""

from toolkit.ir.kernels import available as available
from toolkit.ir.kernels import build as build
from toolkit.ir.kernels import extension as extension
