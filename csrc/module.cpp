// The Python module leni_kernels._C: importing it loads this library, whose operators register themselves.
#include <Python.h>

namespace {
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "The C++ operators of leni_kernels.", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
}

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
