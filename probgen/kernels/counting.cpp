// Contingency counts, decomposable scores of families, and greedy search over directed graphs, behind plain buffers.
// No state; the lock is released. Columns are codes 0 .. cards-1, one after the other (column-major).
//
// What makes it fast: rows are sorted by the joint code of a child and its parents, and packed one-hot rows of ALL columns are
// added up group by group, 255 rows at a time in bytes. So one sweep gives the tables of the family with every other variable
// added, and the score of every single change of its parents ("toggled").
#define Py_LIMITED_API 0x030B0000
#include "buffers.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

// A loop is built twice, for AVX2 and the baseline, and chosen when the module is loaded.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define PROBGEN_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define PROBGEN_CLONES
#endif

#include "counting.hpp"
#include "graphsearch.hpp"

namespace {

// A C-contiguous buffer of bytes, 2-byte or 4-byte whole numbers, of some shape (-1: any size).
bool take_small(PyObject *object, const char *name, const char *formats, std::vector<Py_ssize_t> shape, bool writable, Buffer &out) {
    if (PyObject_GetBuffer(object, &out.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0))) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: a contiguous%s buffer is wanted", name, writable ? " writable" : "");
        return false;
    }
    out.held = true;
    const char *format = out.view.format ? out.view.format : "B";
    bool fits = out.view.ndim == int(shape.size()) && std::strlen(format) == 1 && std::strchr(formats, format[0]);
    for (int i = 0; fits && i < out.view.ndim; ++i) fits = shape[size_t(i)] < 0 || out.view.shape[i] == shape[size_t(i)];
    if (!fits) PyErr_Format(PyExc_ValueError, "%s: another shape or type is wanted", name);
    return fits;
}

unsigned char *bytes(const Buffer &buffer) { return static_cast<unsigned char *>(buffer.view.buf); }

// Codes (V, n) with their cards (V,), checked: every code below its card.
struct Codes {
    Buffer codes, cards;
    size_t V = 0, n = 0;
    bool read(PyObject *pcodes, PyObject *pcards) {
        if (!take_small(pcodes, "codes", "BHhiI", {-1, -1}, false, codes)) return false;
        if (!take(pcards, "cards", 'q', {codes.view.shape[0]}, false, cards)) return false;
        V = size_t(codes.view.shape[0]), n = size_t(codes.view.shape[1]);
        bool fits = n < (size_t(1) << 31);
        for (size_t v = 0; fits && v < V; ++v) fits = cards.whole()[v] >= 1 && cards.whole()[v] <= 65535;
        if (!fits) PyErr_SetString(PyExc_ValueError, "codes of 1, 2 or 4 bytes and cards from 1 to 65535 are wanted");
        return fits;
    }
    template <class T>
    bool copy(Table &table) const {
        const T *from = static_cast<const T *>(codes.view.buf);
        long long worst = 0;
        for (size_t v = 0; v < V; ++v)
            for (size_t i = 0; i < n; ++i) {
                const long long code = (long long)from[v * n + i];
                worst |= code < 0 || code >= (long long)table.cards[v];
                table.columns[v * n + i] = std::uint16_t(code);
            }
        return !worst;
    }
    bool into(Table &table) const {
        table.V = V, table.n = n;
        table.cards.assign(cards.whole(), cards.whole() + V);
        table.columns.resize(V * n);
        switch (codes.view.format ? codes.view.format[0] : 'B') {
            case 'B': return copy<unsigned char>(table);
            case 'H': return copy<unsigned short>(table);
            case 'h': return copy<short>(table);
            case 'I': return copy<unsigned int>(table);
            default: return copy<int>(table);
        }
    }
};

// Families as (child, parents...), their starts in `at` (m + 1,).
struct Families {
    Buffer members, at;
    size_t m = 0;
    bool read(PyObject *pmembers, PyObject *pat, size_t V) {
        if (!take(pmembers, "members", 'q', {-1}, false, members) || !take(pat, "starts", 'q', {-1}, false, at)) return false;
        const long long *starts = at.whole(), total = members.view.shape[0];
        bool fits = at.view.shape[0] >= 1 && starts[0] == 0 && starts[at.view.shape[0] - 1] == total;
        for (Py_ssize_t i = 0; fits && i + 1 < at.view.shape[0]; ++i) fits = starts[i] < starts[i + 1] && starts[i + 1] <= total;
        for (long long i = 0; fits && i < total; ++i) fits = members.whole()[i] >= 0 && members.whole()[i] < (long long)V;
        m = size_t(at.view.shape[0]) - 1;
        for (size_t f = 0; fits && f < m; ++f) {
            auto family = (*this)[f];
            std::sort(family.begin(), family.end());
            fits = std::adjacent_find(family.begin(), family.end()) == family.end();
        }
        if (!fits) PyErr_SetString(PyExc_ValueError, "families: a child and distinct parents each are wanted");
        return fits;
    }
    std::vector<size_t> operator[](size_t f) const {
        const long long *starts = at.whole(), *from = members.whole();
        return std::vector<size_t>(from + starts[f], from + starts[f + 1]);
    }
};

// Runs work on the codes as a table, without the lock; `work` returns null, or what is wrong.
template <class Work>
PyObject *on_table(const Codes &codes, Work work) {
    const char *wrong = nullptr;
    PyObject *done = unlocked([&] {
        Table table;
        wrong = codes.into(table) ? work(table) : "codes: each from 0 to below its card is wanted";
    });
    if (!done || !wrong) return done;
    Py_DECREF(done);
    PyErr_SetString(PyExc_ValueError, wrong);
    return nullptr;
}

PyObject *counts(PyObject *, PyObject *args) {
    PyObject *pcodes, *pcards, *pmembers, *pat, *pout;
    if (!PyArg_ParseTuple(args, "OOOOO", &pcodes, &pcards, &pmembers, &pat, &pout)) return nullptr;
    Codes codes;
    Families families;
    Buffer out;
    if (!codes.read(pcodes, pcards) || !families.read(pmembers, pat, codes.V) || !take(pout, "out", 'q', {-1}, true, out))
        return nullptr;
    double cells = 0;
    for (size_t f = 0; f < families.m; ++f) {
        double each = 1;
        for (size_t v : families[f]) each *= double(codes.cards.whole()[v]);
        cells += each;
    }
    if (cells != double(out.view.shape[0]) || cells >= 4294967296.0) {
        PyErr_SetString(PyExc_ValueError, "out: the product of each family's cards is wanted");
        return nullptr;
    }
    return on_table(codes, [&](const Table &table) -> const char * {
        long long *to = out.whole();
        std::vector<std::uint32_t> code(table.n);
        for (size_t f = 0; f < families.m; ++f) to += table.contingency(families[f], code, to);
        return nullptr;
    });
}

PyObject *toggled(PyObject *, PyObject *args) {
    PyObject *pcodes, *pcards, *pmembers, *pat, *pout;
    Score score;
    int kind;
    if (!PyArg_ParseTuple(args, "OOOOiddO", &pcodes, &pcards, &pmembers, &pat, &kind, &score.ess, &score.scale, &pout)) return nullptr;
    Codes codes;
    Families families;
    Buffer out;
    if (!codes.read(pcodes, pcards) || !families.read(pmembers, pat, codes.V) || !score.choose(kind) ||
        !take(pout, "out", 'd', {(Py_ssize_t)families.m, (Py_ssize_t)codes.V}, true, out))
        return nullptr;
    return on_table(codes, [&](const Table &table) -> const char * {
        Evaluator evaluator(table, score);
        for (size_t f = 0; f < families.m; ++f) {
            auto family = families[f];
            const size_t child = family[0];
            family.erase(family.begin());
            evaluator.toggled(child, family, out.numbers() + f * codes.V);
        }
        return nullptr;
    });
}

PyObject *search(PyObject *, PyObject *args) {
    PyObject *pcodes, *pcards, *pallowed, *prequired, *pmost, *pgraph, *phistory;
    Score score;
    Options options;
    int kind;
    unsigned long long seed;
    long long tabu, patience, restarts, kicks, moves;
    if (!PyArg_ParseTuple(args, "OOiddOOO(LLLLLK)OO", &pcodes, &pcards, &kind, &score.ess, &score.scale, &pallowed, &prequired,
                          &pmost, &tabu, &patience, &restarts, &kicks, &moves, &seed, &pgraph, &phistory))
        return nullptr;
    Codes codes;
    Buffer allowed, required, most, graph, history;
    if (!codes.read(pcodes, pcards) || !score.choose(kind)) return nullptr;
    const Py_ssize_t V = Py_ssize_t(codes.V);
    if (!take_small(pallowed, "allowed", "B", {V, V}, false, allowed) || !take_small(prequired, "required", "B", {V, V}, false, required) ||
        !take(pmost, "most", 'q', {V}, false, most) || !take_small(pgraph, "graph", "B", {V, V}, true, graph) ||
        !take(phistory, "history", 'd', {-1, 4}, true, history))
        return nullptr;
    if (std::min({tabu, patience, restarts, kicks, moves}) < 0) {
        PyErr_SetString(PyExc_ValueError, "options: whole numbers from 0 are wanted");
        return nullptr;
    }
    options = {size_t(tabu), size_t(patience), size_t(restarts), size_t(kicks), size_t(moves), seed};
    double total = 0;
    size_t evaluated = 0, made = 0;
    PyObject *done = on_table(codes, [&](const Table &table) -> const char * {
        Evaluator evaluator(table, score);
        Search run(evaluator, options, bytes(allowed), bytes(required), most.whole());
        if (!run.start(bytes(graph))) return "graph: a directed graph without cycles is wanted";
        run.go();
        run.write(bytes(graph), history.numbers(), size_t(history.view.shape[0]));
        total = run.best_total, evaluated = run.evaluated, made = run.steps.size();
        return nullptr;
    });
    if (!done) return nullptr;
    Py_DECREF(done);
    return Py_BuildValue("(dnn)", total, Py_ssize_t(evaluated), Py_ssize_t(made));
}

PyMethodDef methods[] = {
    {"counts", counts, METH_VARARGS,
     "counts(codes, cards, members, starts, out)\n\n"
     "Contingency tables of families over codes (V, n) of 1, 2 or 4 bytes. Family f is members[starts[f]:starts[f + 1]], the\n"
     "child first; its table has the parents' axes, then the child's. Writes them one after the other into out (int64)."},
    {"toggled", toggled, METH_VARARGS,
     "toggled(codes, cards, members, starts, kind, ess, scale, out)\n\n"
     "Local scores in nats. out (m, V): in the child's own place the family's, in place z the score with z taken out of the\n"
     "parents where it is one, else added. kind: 0 log-likelihood, 1 BIC, 2 AIC, 3 BDeu, 4 K2. A row counts as scale rows."},
    {"search", search, METH_VARARGS,
     "search(codes, cards, kind, ess, scale, allowed, required, most,\n"
     "       (tabu, patience, restarts, kicks, moves, seed), graph, history)\n\n"
     "Greedy search over directed graphs. allowed, required and graph (V, V): [parent, child]; graph holds the start and gets the\n"
     "best. most (V,): parents at most. Writes moves (kind, parent, child, total) into history while it has room.\n"
     "Returns the best total score, the number of families evaluated and the number of moves made."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_counting", "Contingency counts and scores of families.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__counting(void) { return PyModule_Create(&module); }
