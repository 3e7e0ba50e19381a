"""struct mmsghdr of recvmmsg(2) and sendmmsg(2): many datagrams with one system call."""

import ctypes


class Iovec(ctypes.Structure):
    """struct iovec; the base is an address."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Mmsghdr(ctypes.Structure):
    """struct mmsghdr: a message, and how much of it was sent or received."""

    _fields_ = (("hdr", Msghdr), ("len", ctypes.c_uint32))
