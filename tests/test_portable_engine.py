"""The tests' own llama-server runs on this processor, or tests with a real engine say nothing."""

from __future__ import annotations

from tests.harness.portable_engine import fits_this_processor

EPYC = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse4_2 avx avx2 fma\n"
XEON = "processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_bf16 amx_tile amx_int8\n"


def test_a_library_for_amx_is_not_taken_where_the_processor_lacks_it() -> None:
    assert fits_this_processor(XEON)
    assert not fits_this_processor(EPYC)
    assert not fits_this_processor(XEON.replace("amx_tile", ""))  # the kernel does not allow it
    assert not fits_this_processor("")
