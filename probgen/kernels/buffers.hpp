// Buffers in, buffers out, threads: what every extension module here shares. Include it after the Python limits are set.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// Runs tasks 0..n-1 on some threads, each told which worker it is; tasks are independent of each other. What a task throws is
// thrown again here; a thread that can't be had is done without.
template <class Task>
void spread(size_t n, int threads, Task task) {
    size_t most = std::min<size_t>(threads < 1 ? 1 : size_t(threads), n);
    std::atomic<size_t> next{0};
    std::vector<std::exception_ptr> problems(most);
    auto work = [&](size_t worker) {
        try {
            for (size_t i; (i = next++) < n;) task(i, worker);
        } catch (...) {
            problems[worker] = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    try {
        for (size_t i = 1; i < most; ++i) others.emplace_back(work, i);
    } catch (const std::system_error &) {
    }
    if (most) work(0);
    for (auto &thread : others) thread.join();
    for (auto &problem : problems)
        if (problem) std::rethrow_exception(problem);
}

struct Buffer {
    Py_buffer view{};
    bool held = false;
    ~Buffer() { if (held) PyBuffer_Release(&view); }
    double *numbers() const { return static_cast<double *>(view.buf); }
    long long *whole() const { return static_cast<long long *>(view.buf); }
};

// A C-contiguous buffer of the given kind ('d' or 'q') and shape (-1: any). Sets ValueError and returns false otherwise.
inline bool take(PyObject *object, const char *name, char kind, std::vector<Py_ssize_t> shape, bool writable, Buffer &out) {
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &out.view, flags)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: a contiguous%s buffer is wanted", name, writable ? " writable" : "");
        return false;
    }
    out.held = true;
    const char *format = out.view.format ? out.view.format : "B";
    bool right = out.view.itemsize == 8 && (kind == 'd' ? !std::strcmp(format, "d")
                                                        : !std::strcmp(format, "q") || !std::strcmp(format, "l"));
    bool fits = out.view.ndim == int(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || out.view.shape[i] == shape[i];
    if (right && fits) return true;
    std::string wanted;
    for (auto size : shape) wanted += (size < 0 ? std::string("any") : std::to_string(size)) + " ";
    PyErr_Format(PyExc_ValueError, "%s: %s of shape ( %s) are wanted", name, kind == 'd' ? "float64" : "int64",
                 wanted.c_str());
    return false;
}

// A buffer that may be None: its address, or null.
inline bool maybe(PyObject *object, const char *name, std::vector<Py_ssize_t> shape, Buffer &out, double *&at) {
    at = nullptr;
    if (object == Py_None) return true;
    if (!take(object, name, 'd', shape, true, out)) return false;
    at = out.numbers();
    return true;
}

// Runs work without the interpreter's lock; None, or MemoryError, or ValueError with the text of what was thrown.
template <class Work>
PyObject *unlocked(Work work) {
    bool done = true;
    std::string wrong;
    Py_BEGIN_ALLOW_THREADS;
    try {
        work();
    } catch (const std::bad_alloc &) {
        done = false;
    } catch (const std::exception &problem) {
        wrong = problem.what();
    }
    Py_END_ALLOW_THREADS;
    if (!done) return PyErr_NoMemory();
    if (!wrong.empty()) {
        PyErr_SetString(PyExc_ValueError, wrong.c_str());
        return nullptr;
    }
    Py_RETURN_NONE;
}

}  // namespace
