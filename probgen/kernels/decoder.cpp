// One step of a decoder-only transformer (probgen.nn.transformer) for rows side by side, and the draw of a symbol from its
// logits, behind plain buffers of float32 or float64. No state; the lock is released.
//
// The loops of decoder.hpp are built for AVX-512, AVX2 with fused products and the baseline, and chosen when the module is
// loaded; the environment variable PROBGEN_ISA (avx512, avx2, generic) asks for a lower one. Other compilers build plain loops.
#define Py_LIMITED_API 0x030B0000
#include "buffers.hpp"
#include "isa.hpp"

#include <cmath>
#include <cstdint>
#include <functional>
#ifdef PROBGEN_X86
#include <immintrin.h>
#endif

namespace {

// Matrices (N, K) are packed in panels of PANEL outputs, (K, PANEL) each, the last filled up.
template <class Real> constexpr size_t PANEL = 128 / sizeof(Real);
template <class Real> size_t packed(size_t N, size_t K) { return (N + PANEL<Real> - 1) / PANEL<Real> * PANEL<Real> * K; }

// Keys are kept in blocks of places, (BLOCK places) inside (size): a vector holds one number of several places.
constexpr size_t BLOCK = 16;

template <class Real> struct Step {
    size_t count, layers, width, heads, hidden, pairs, slots, room, place;
    const Real *table, *pair, *weights, *again, *turn;  // turn: of each place cosines (size / 2), then sines
    Real scale, *keys, *values, *logits;
    const long long *rows, *symbols, *before;
    size_t place_of(size_t i) const {  // Transformer.place, and what comes before a start is not looked at
        const std::uint64_t start = count - 1, symbol = std::uint64_t(symbols[i]);
        const std::uint64_t last = symbol == start ? start : std::uint64_t(before[i]);
        return size_t((((last + 1) * 1000003u) ^ ((symbol + 1) * 40503u)) % pairs);
    }
};

struct Choice {
    double temperature, top_p, min_p;
    size_t top_k;
};

template <class Real> struct Draws {
    std::vector<Real> logits, kept, masses;
    std::vector<std::uint32_t> ids;
};

#define PROBGEN_WIDE(bytes)                                                                                          \
    constexpr size_t BYTES = bytes;                                                                                  \
    template <class Real> struct Wide;                                                                               \
    template <> struct Wide<float> {                                                                                 \
        typedef float V __attribute__((vector_size(bytes), aligned(4), may_alias));                                  \
        typedef std::uint32_t U __attribute__((vector_size(bytes)));                                                 \
    };                                                                                                               \
    template <> struct Wide<double> {                                                                                \
        typedef double V __attribute__((vector_size(bytes), aligned(8), may_alias));                                 \
        typedef std::uint64_t U __attribute__((vector_size(bytes)));                                                 \
    };

#ifdef PROBGEN_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2")
namespace avx512 {
PROBGEN_WIDE(64)
template <class Mask> static inline bool any(Mask mask) { return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0; }
#include "decoder.hpp"
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
namespace avx2 {
PROBGEN_WIDE(32)
template <class Mask> static inline bool any(Mask mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
#include "decoder.hpp"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace generic {
#if defined(__GNUC__)
PROBGEN_WIDE(16)
template <class Mask> static inline bool any(Mask mask) {
    unsigned long long parts[2];
    std::memcpy(parts, &mask, sizeof parts);
    return parts[0] || parts[1];
}
#else
constexpr size_t BYTES = 1;
template <class Real> struct Wide;
template <> struct Wide<float> { typedef float V; typedef std::uint32_t U; };
template <> struct Wide<double> { typedef double V; typedef std::uint64_t U; };
static inline bool any(bool mask) { return mask; }
#endif
#include "decoder.hpp"
}  // namespace generic

template <class Real> struct Loops {
    void (*decode)(const Step<Real> &, size_t, size_t);
    void (*draw)(const Choice &, const Real *, size_t, size_t, const double *, long long *);
};

struct Build {
    const char *name;
    Loops<float> single;
    Loops<double> full;
    template <class Real> const Loops<Real> &loops() const;
};
template <> const Loops<float> &Build::loops<float>() const { return single; }
template <> const Loops<double> &Build::loops<double>() const { return full; }

#define PROBGEN_BUILD(space) \
    {#space, {space::decode<float>, space::draw<float>}, {space::decode<double>, space::draw<double>}}

Build chosen() {
#ifdef PROBGEN_X86
    const Isa isa = widest();
    if (isa == Isa::Avx512) return PROBGEN_BUILD(avx512);
    if (isa == Isa::Avx2) return PROBGEN_BUILD(avx2);
#endif
    return PROBGEN_BUILD(generic);
}

const Build build = chosen();

// Reals

template <class Real> constexpr const char *FORMAT = sizeof(Real) == 4 ? "f" : "d";

// A contiguous buffer of Reals of a shape (-1: any).
template <class Real>
bool reals(PyObject *object, const char *name, std::vector<Py_ssize_t> shape, bool writable, Buffer &out, Real *&at) {
    if (PyObject_GetBuffer(object, &out.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0))) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: a contiguous%s buffer is wanted", name, writable ? " writable" : "");
        return false;
    }
    out.held = true;
    bool fits = out.view.format && !std::strcmp(out.view.format, FORMAT<Real>) && out.view.ndim == int(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || out.view.shape[i] == shape[i];
    at = static_cast<Real *>(out.view.buf);
    if (fits) return true;
    std::string wanted;
    for (auto size : shape) wanted += (size < 0 ? std::string("any") : std::to_string(size)) + " ";
    PyErr_Format(PyExc_ValueError, "%s: %s of shape ( %s) are wanted", name, sizeof(Real) == 4 ? "float32" : "float64", wanted.c_str());
    return false;
}

template <class Real>
bool reals(PyObject *object, const char *name, std::vector<Py_ssize_t> shape, Buffer &out, const Real *&at) {
    Real *found = nullptr;
    const bool fits = reals<Real>(object, name, std::move(shape), false, out, found);
    at = found;
    return fits;
}

// 4, 8 or, with an error, 0: the bytes of a buffer's numbers.
int precision(PyObject *object, const char *name) {
    Buffer some;
    if (!PyObject_GetBuffer(object, &some.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        some.held = true;
        const std::string format = some.view.format ? some.view.format : "B";
        if (format == "f" || format == "d") return format == "f" ? 4 : 8;
    }
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "%s: a contiguous buffer of float32 or float64 is wanted", name);
    return 0;
}

bool below(const Buffer &whole, size_t most, const char *name) {
    bool fits = true;
    for (Py_ssize_t i = 0; fits && i < whole.view.shape[0]; ++i) fits = whole.whole()[i] >= 0 && size_t(whole.whole()[i]) < most;
    if (!fits) PyErr_Format(PyExc_ValueError, "%s: each from 0 to %zu is wanted", name, most - 1);
    return fits;
}

struct Arguments {
    PyObject *table, *pair, *weights, *again, *turn, *keys, *values, *rows, *symbols, *before, *logits;
    long long hidden, place;
    double scale;
    int threads;
};

template <class Real> PyObject *stepped(const Arguments &a) {
    Step<Real> s{};
    Buffer table, pair, weights, again, turn, keys, values, rows, symbols, before, logits;
    if (!reals<Real>(a.keys, "keys", {-1, -1, -1, -1, -1, Py_ssize_t(BLOCK)}, true, keys, s.keys)) return nullptr;
    const Py_ssize_t *shape = keys.view.shape, layers = shape[0], slots = shape[1], heads = shape[2], size = shape[4], room = shape[3] * Py_ssize_t(BLOCK);
    const bool sound = layers >= 1 && heads >= 1 && size >= 2 && size % 2 == 0 && a.hidden >= 1 && a.hidden < (1 << 24) &&
                       a.place >= 0 && a.place < room && std::isfinite(a.scale);
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "keys (layers, slots, heads, blocks, even size, 16), a place in the room, a hidden width and a finite scale are wanted");
        return nullptr;
    }
    const Py_ssize_t width = heads * size;
    if (!reals<Real>(a.values, "values", {layers, slots, heads, room, size}, true, values, s.values) ||
        !reals<Real>(a.table, "table", {-1, width}, table, s.table) || !reals<Real>(a.again, "again", {layers}, again, s.again) ||
        !reals<Real>(a.turn, "turn", {-1, 2, size / 2}, turn, s.turn) || !take(a.rows, "rows", 'q', {-1}, false, rows))
        return nullptr;
    const Py_ssize_t n = rows.view.shape[0], count = table.view.shape[0];
    if (!take(a.symbols, "symbols", 'q', {n}, false, symbols) || !take(a.before, "before", 'q', {n}, false, before) ||
        !reals<Real>(a.logits, "logits", {n, count}, true, logits, s.logits) || !below(rows, size_t(slots), "rows") ||
        !below(symbols, size_t(count), "symbols") || !below(before, size_t(count), "before"))
        return nullptr;
    if (a.pair != Py_None) {
        if (!reals<Real>(a.pair, "pair", {-1, width}, pair, s.pair)) return nullptr;
        s.pairs = size_t(pair.view.shape[0]);
    }
    if (a.place >= turn.view.shape[0]) {
        PyErr_SetString(PyExc_ValueError, "turn: of every place up to this one is wanted");
        return nullptr;
    }
    s.count = size_t(count), s.layers = size_t(layers), s.width = size_t(width), s.heads = size_t(heads), s.hidden = size_t(a.hidden);
    s.slots = size_t(slots), s.room = size_t(room), s.place = size_t(a.place), s.scale = Real(a.scale);
    s.rows = rows.whole(), s.symbols = symbols.whole(), s.before = before.whole();
    const size_t w = s.width, each = packed<Real>(3 * w, w) + packed<Real>(w, w) + packed<Real>(s.hidden, w) + packed<Real>(w, s.hidden);
    if (!reals<Real>(a.weights, "weights", {Py_ssize_t(s.layers * each + packed<Real>(s.count, w))}, weights, s.weights)) return nullptr;
    bool twice = false;
    PyObject *done = unlocked([&] {
        std::vector<bool> used(s.slots);
        for (Py_ssize_t i = 0; i < n; ++i) twice = twice || used[size_t(s.rows[i])], used[size_t(s.rows[i])] = true;
        const size_t parts = std::min(size_t(n), size_t(std::max(1, a.threads))), part = parts ? (size_t(n) + parts - 1) / parts : 0;
        if (!twice)
            spread(parts, a.threads, [&](size_t i, size_t) {
                if (i * part < size_t(n)) build.loops<Real>().decode(s, i * part, std::min(size_t(n), (i + 1) * part));
            });
    });
    if (!done || !twice) return done;
    Py_DECREF(done);
    PyErr_SetString(PyExc_ValueError, "rows: each slot once is wanted");
    return nullptr;
}

PyObject *step(PyObject *, PyObject *args) {
    Arguments a{};
    if (!PyArg_ParseTuple(args, "OOOOOLdOOOOOLiO", &a.table, &a.pair, &a.weights, &a.again, &a.turn, &a.hidden, &a.scale, &a.keys, &a.values,
                          &a.rows, &a.symbols, &a.before, &a.place, &a.threads, &a.logits))
        return nullptr;
    const int bytes = precision(a.keys, "keys");
    return !bytes ? nullptr : bytes == 4 ? stepped<float>(a) : stepped<double>(a);
}

template <class Real> PyObject *picked(const Choice &choice, PyObject *plogits, PyObject *pu, PyObject *pout) {
    Buffer logits, u, out;
    const Real *x = nullptr;
    if (!reals<Real>(plogits, "logits", {-1, -1}, logits, x)) return nullptr;
    const Py_ssize_t n = logits.view.shape[0], count = logits.view.shape[1];
    if (!take(pu, "u", 'd', {n}, false, u) || !take(pout, "out", 'q', {n}, true, out)) return nullptr;
    if (count < 1 || count > (Py_ssize_t(1) << 31)) {
        PyErr_SetString(PyExc_ValueError, "logits: of one symbol or more are wanted");
        return nullptr;
    }
    return unlocked([&] { build.loops<Real>().draw(choice, x, size_t(n), size_t(count), u.numbers(), out.whole()); });
}

PyObject *pick(PyObject *, PyObject *args) {
    PyObject *plogits, *pu, *pout;
    Choice choice{};
    long long top_k;
    if (!PyArg_ParseTuple(args, "OOdLddO", &plogits, &pu, &choice.temperature, &top_k, &choice.top_p, &choice.min_p, &pout)) return nullptr;
    if (!(choice.temperature > 0) || top_k < 0 || !(choice.top_p > 0) || !(choice.min_p >= 0 && choice.min_p < 1)) {
        PyErr_SetString(PyExc_ValueError, "a temperature above 0, top_k from 0, top_p above 0 and min_p from 0 to below 1 are wanted");
        return nullptr;
    }
    choice.top_k = size_t(top_k);
    const int bytes = precision(plogits, "logits");
    return !bytes ? nullptr : bytes == 4 ? picked<float>(choice, plogits, pu, pout) : picked<double>(choice, plogits, pu, pout);
}

PyObject *isa(PyObject *, PyObject *) { return PyUnicode_FromString(build.name); }

PyMethodDef methods[] = {
    {"step", step, METH_VARARGS,
     "step(table, pair, weights, again, turn, hidden, scale, keys, values, rows, symbols, before, place, threads, logits)\n\n"
     "Reads a symbol of each of n rows; writes the logits (n, V) of the next ones. table (V, width); pair (pairs, width) or None;\n"
     "weights: of each block mix, out, up, down, then the table, each in panels of 128 bytes of outputs; again (layers,);\n"
     "turn (places, 2, size / 2): cosines and sines. keys (layers, slots, heads, room / 16, size, 16) and values (layers, slots,\n"
     "heads, room, size) hold `place` symbols of each slot and take up one more; rows (n,): each row's slot; symbols, before (n,): the\n"
     "symbols read, and those before them. All float32, or all float64."},
    {"pick", pick, METH_VARARGS,
     "pick(logits, u, temperature, top_k, top_p, min_p, out)\n\n"
     "The symbol (n,) at which the running sum of the pmf of logits (n, V), so changed, passes u (n,)."},
    {"isa", isa, METH_NOARGS, "isa()\n\nThe instruction set in use: avx512, avx2 or generic."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_decoder", "Steps of a transformer, and draws from its logits.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__decoder(void) { return PyModule_Create(&module); }
