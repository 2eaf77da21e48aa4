"""What the kernels' tilings have to know of a GPU, by the name that compilers give it ("sm_90", "gfx942")."""

from __future__ import annotations

_KIB = 1024

# The largest shared memory of one program, in bytes, by the longest prefix that an architecture begins with.
_SHARED_MEMORY = {
    "sm_80": 163 * _KIB, "sm_86": 99 * _KIB, "sm_87": 163 * _KIB, "sm_89": 99 * _KIB, "sm_9": 227 * _KIB,
    "sm_10": 227 * _KIB, "sm_11": 227 * _KIB, "sm_12": 99 * _KIB, "gfx95": 160 * _KIB, "gfx": 64 * _KIB,
    "": 48 * _KIB,
}


def shared_memory(architecture: str) -> int:
    """The bytes of shared memory that one program can have; of a GPU that is not known, what all have."""
    prefix = max(filter(architecture.startswith, _SHARED_MEMORY), key=len)
    return _SHARED_MEMORY[prefix]


# The multiprocessors of the largest GPU of an architecture that is common, by the longest prefix.
_MULTIPROCESSORS = {
    "sm_80": 108, "sm_86": 84, "sm_87": 16, "sm_89": 128, "sm_9": 132, "sm_10": 148, "sm_12": 170, "gfx90a": 104,
    "gfx94": 304, "gfx95": 256, "gfx11": 96, "gfx12": 64, "": 128,
}


def multiprocessors(architecture: str) -> int:
    """The multiprocessors of a GPU that is not there to be asked."""
    prefix = max(filter(architecture.startswith, _MULTIPROCESSORS), key=len)
    return _MULTIPROCESSORS[prefix]


def is_amd(architecture: str) -> bool:
    """Whether the GPU is AMD's."""
    return architecture.startswith("gfx")


def is_rdna(architecture: str) -> bool:
    """Whether the GPU is one of AMD's for graphics; those for data centres (CDNA) are gfx9."""
    return is_amd(architecture) and not architecture.startswith("gfx9")


def warp_size(architecture: str) -> int:
    """The threads of a warp: 64 on CDNA, 32 elsewhere."""
    return 64 if architecture.startswith("gfx9") else 32


def warps_of(threads: int, architecture: str) -> int:
    """The warps for a tile that suits so many threads; twice as many on RDNA, whose compiler needs more registers."""
    return (2 if is_rdna(architecture) else 1) * threads // warp_size(architecture)


def multiplies_from_shared(architecture: str) -> bool:
    """Whether the matrix units read shared memory, as datacentre Hopper's and Blackwell's; others read registers."""
    return architecture.startswith(("sm_9", "sm_10"))


def compares_pairs(architecture: str, operand: str) -> bool:
    """Whether one instruction compares two pairs of operands: on NVIDIA GPUs, of bfloat16 from Hopper on."""
    return architecture.startswith("sm_") and (
        operand == "fp16" or (operand == "bf16" and not architecture.startswith("sm_8")))


def operand_types(architecture: str) -> tuple[str, ...]:
    """What kernels multiply there: "fp16", "bf16", "fp32" and "fp64", and "tf32" where there are units for it."""
    tf32 = ("tf32",) if architecture.startswith("sm_") and why_unsupported(architecture) is None else ()
    return ("fp16", "bf16", *tf32, "fp32", "fp64")


def why_unsupported(architecture: str) -> str | None:
    """The reason kernels are not to run on a GPU, or None; of one that is not known, None."""
    if architecture.startswith(("sm_3", "sm_5", "sm_6", "sm_7")):
        # Triton has products for sm_75, but without its matrix units, and spills thousands of bytes of registers.
        return f"the GPU is {architecture}, and Triton has matrix products for NVIDIA GPUs of sm_80 or newer"
    return None
