// The Python module leni_kernels._C: importing it loads this library, whose operators register themselves.
#include <Python.h>

namespace {
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "The C++ operators of leni_kernels.", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
}

PyMODINIT_FUNC PyInit__C() {
  PyObject* created = PyModule_Create(&module);
#if defined(Py_GIL_DISABLED)
  // A free-threaded Python would otherwise take its lock back; nothing here is Python's.
  if (created != nullptr) PyUnstable_Module_SetGIL(created, Py_MOD_GIL_NOT_USED);
#endif
  return created;
}
