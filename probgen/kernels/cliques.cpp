// Sums and maxima over the open variables of a product of discrete factors, row by row: bucket elimination.
//
// Each row cuts its own evidence out of the tables, so that work is the product of open levels only: factors that evidence
// fills are looked up, the others meet in the bucket of their first variable in the elimination order (Dechter 1999). Where
// that order makes large clusters, a greedy one is made for the row. Numbers are doubles, scaled message by message; a row in
// which a share may have been lost to underflow is done again in numbers with an exponent of 64 bits.
#define Py_LIMITED_API 0x030B0000
#include "buffers.hpp"

#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>

namespace {

typedef unsigned long long Bits;

inline int lowest(Bits bits) {
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int i = 0;
    while (!(bits & 1)) bits >>= 1, ++i;
    return i;
#endif
}

template <class Each>
inline void each_bit(const Bits *bits, size_t words, Each each) {
    for (size_t w = 0; w < words; ++w)
        for (Bits left = bits[w]; left; left &= left - 1) each(int(w * 64) + lowest(left));
}

// m * 2^e with 0.5 <= m < 1, or m = 0.
struct Wide {
    double m = 0;
    long long e = 0;
    Wide() = default;
    Wide(double value) { int k; m = std::frexp(value, &k), e = k; }
    static Wide of_log(double log) {
        if (!(log > -INFINITY)) return Wide();
        const double power = std::floor(log * 1.4426950408889634074);
        // log - power ln 2 in two parts, since power may be large
        Wide out(std::exp((log - power * 0.693145751953125) - power * 1.42860682030941723212e-6));
        out.e += (long long)power;
        return out;
    }
    Wide scaled(double by) const { Wide out(m * by); if (out.m != 0) out.e += e; return out; }
};
inline Wide operator*(const Wide &a, const Wide &b) { Wide out(a.m * b.m); if (out.m != 0) out.e += a.e + b.e; return out; }
inline Wide operator/(const Wide &a, const Wide &b) { Wide out(a.m / b.m); if (out.m != 0) out.e += a.e - b.e; return out; }
inline Wide operator+(const Wide &a, const Wide &b) {
    if (a.m == 0) return b;
    if (b.m == 0) return a;
    const Wide &big = a.e >= b.e ? a : b, &small = a.e >= b.e ? b : a;
    if (big.e - small.e > 200) return big;
    Wide out(big.m + std::ldexp(small.m, int(small.e - big.e)));
    out.e += big.e;
    return out;
}
inline bool operator<(const Wide &a, const Wide &b) {
    if (a.m == 0 || b.m == 0) return a.m < b.m;
    return a.e != b.e ? a.e < b.e : a.m < b.m;
}
inline double plain(double value) { return value; }
inline double plain(const Wide &value) { return std::ldexp(value.m, int(std::max<long long>(-2000, std::min<long long>(2000, value.e)))); }
inline bool is_zero(double value) { return value == 0; }
inline bool is_zero(const Wide &value) { return value.m == 0; }
inline double log_of(double value) { return std::log(value); }
inline double log_of(const Wide &value) { return std::log(value.m) + double(value.e) * 0.69314718055994530942; }

// What all rows read.
struct Network {
    size_t V = 0, F = 0, width = 0;  // variables, factors, entries of a row's own tables
    const long long *cards = nullptr, *starts = nullptr, *flat = nullptr, *heads = nullptr, *order = nullptr, *mine = nullptr;
    const double *logs = nullptr, *own = nullptr;
    std::vector<size_t> stride, place, size;
    std::vector<double> linear, low, top, levels;
    std::vector<Wide> wide;
    std::vector<int> head_of, children_first;  // the factor that a variable heads, or -1; variables, children before parents
    std::vector<std::vector<int>> uses;        // factors of each variable but the one it heads

    void prepare() {
        levels.assign(cards, cards + V);
        stride.resize(size_t(starts[F]));
        place.resize(F), size.resize(F), low.assign(F, 0.0), top.assign(F, 0.0);
        size_t shared = 0, row = 0;
        for (size_t f = 0; f < F; ++f) {
            size_t entries = 1;
            for (long long k = starts[f + 1]; k-- > starts[f];) stride[size_t(k)] = entries, entries *= size_t(cards[flat[k]]);
            size[f] = entries;
            place[f] = mine[f] ? row : shared;
            (mine[f] ? row : shared) += entries;
        }
        width = row;
        linear.resize(shared);
        for (size_t f = 0; f < F; ++f)
            if (!mine[f]) top[f] = exponents(logs + place[f], size[f], linear.data() + place[f], low[f]);
        graph();
    }

    // exp(log - its maximum), the maximum, and the smallest number above 0 (0: some were lost).
    static double exponents(const double *log, size_t n, double *out, double &low) {
        double top = -INFINITY;
        for (size_t i = 0; i < n; ++i) top = std::max(top, log[i]);
        if (!(top > -INFINITY)) top = 0;
        low = 1;
        for (size_t i = 0; i < n; ++i) {
            out[i] = std::exp(log[i] - top);
            if (log[i] > -INFINITY) low = std::min(low, out[i]);
        }
        if (low < 1e-290) low = 0;
        return top;
    }

    void graph() {
        head_of.assign(V, -1);
        uses.assign(V, {});
        bool directed = true;
        for (size_t f = 0; f < F; ++f)
            for (long long k = starts[f]; k < starts[f + 1]; ++k) {
                if (flat[k] != heads[f]) uses[size_t(flat[k])].push_back(int(f));
                else if (head_of[size_t(flat[k])] >= 0) directed = false;
                else head_of[size_t(flat[k])] = int(f);
            }
        std::vector<int> waiting(V, 0), ready;
        for (size_t v = 0; v < V; ++v)
            for (int f : uses[v]) waiting[v] += heads[f] >= 0;
        for (size_t v = 0; v < V; ++v)
            if (!waiting[v]) ready.push_back(int(v));
        while (directed && !ready.empty()) {
            int v = ready.back();
            ready.pop_back();
            children_first.push_back(v);
            if (head_of[size_t(v)] < 0) continue;
            const size_t f = size_t(head_of[size_t(v)]);
            for (long long k = starts[f]; k < starts[f + 1]; ++k)
                if (flat[k] != v && !--waiting[size_t(flat[k])]) ready.push_back(int(flat[k]));
        }
    }

    double log_at(size_t f, size_t offset, const double *row) const { return (mine[f] ? row : logs)[place[f] + offset]; }
};

// A greedy elimination order of a graph: next the vertex of the smallest cluster, or of the fewest edges to be filled in.
std::vector<int> greedy(std::vector<Bits> beside, size_t m, size_t words, const std::vector<double> &log_card, bool fill) {
    std::vector<double> price(m), fills(m);
    std::vector<char> gone(m, 0);
    auto row = [&](size_t v) { return beside.data() + v * words; };
    auto weigh = [&](size_t v) {
        double weight = log_card[v], lacking = 0;
        each_bit(row(v), words, [&](int u) { weight += log_card[size_t(u)]; });
        if (fill)
            each_bit(row(v), words, [&](int u) {
                for (size_t w = 0; w < words; ++w) {
                    Bits rest = row(v)[w] & ~row(size_t(u))[w];
                    if (size_t(u) / 64 == w) rest &= ~(Bits(1) << (u % 64));
#if defined(__GNUC__)
                    lacking += __builtin_popcountll(rest);
#else
                    for (; rest; rest &= rest - 1) ++lacking;
#endif
                }
            });
        price[v] = fill ? lacking * 1e6 + weight : weight;
    };
    for (size_t v = 0; v < m; ++v) weigh(v);
    std::vector<int> order;
    std::vector<Bits> dirty(words);
    while (order.size() < m) {
        size_t v = m;
        for (size_t u = 0; u < m; ++u)
            if (!gone[u] && (v == m || price[u] < price[v])) v = u;
        gone[v] = 1;
        order.push_back(int(v));
        std::fill(dirty.begin(), dirty.end(), 0);
        each_bit(row(v), words, [&](int u) {
            Bits *mine = row(size_t(u));
            for (size_t w = 0; w < words; ++w) mine[w] |= row(v)[w];
            mine[size_t(u) / 64] &= ~(Bits(1) << (u % 64));
            mine[v / 64] &= ~(Bits(1) << (v % 64));
            for (size_t w = 0; w < words; ++w) dirty[w] |= fill ? mine[w] : 0;
            dirty[size_t(u) / 64] |= Bits(1) << (u % 64);
        });
        each_bit(dirty.data(), words, [&](int u) { if (!gone[size_t(u)]) weigh(size_t(u)); });
    }
    return order;
}

template <class T>
inline T larger(const T &a, const T &b) { return a < b ? b : a; }

// out (the product over all axes, first axis fastest) and message (its sum or maximum over the first axis) of K tables.
template <class T, int K, int C0, bool STORE, bool MAX>
void product(const T *const *from, const size_t *strides, size_t dims, const int *card, T *out, T *message) {
    const T *at[K ? K : 1];
    for (int k = 0; k < K; ++k) at[k] = from[k];
    const int c0 = C0 ? C0 : card[0], c1 = dims > 1 ? card[1] : 1;
    int digit[64] = {0};
    for (;;) {
        for (int j = 0; j < c1; ++j) {
            T total = T(0.0);
            for (int i = 0; i < c0; ++i) {
                T x = K ? at[0][size_t(i) * strides[0]] : T(1.0);
                for (int k = 1; k < K; ++k) x = x * at[k][size_t(i) * strides[size_t(k) * dims]];
                if (STORE) out[i] = x;
                total = MAX ? larger(total, x) : total + x;
            }
            if (STORE) out += c0;
            *message++ = total;
            if (dims > 1)
                for (int k = 0; k < K; ++k) at[k] += strides[size_t(k) * dims + 1];
        }
        if (dims > 1)
            for (int k = 0; k < K; ++k) at[k] -= size_t(c1) * strides[size_t(k) * dims + 1];
        size_t d = 2;
        for (; d < dims; ++d) {
            for (int k = 0; k < K; ++k) at[k] += strides[size_t(k) * dims + d];
            if (++digit[d] < card[d]) break;
            digit[d] = 0;
            for (int k = 0; k < K; ++k) at[k] -= size_t(card[d]) * strides[size_t(k) * dims + d];
        }
        if (d >= dims) return;
    }
}

template <class T, int K, bool STORE, bool MAX>
void product_of(const T *const *from, const size_t *strides, size_t dims, const int *card, T *out, T *message) {
    switch (card[0]) {
        case 2: return product<T, K, 2, STORE, MAX>(from, strides, dims, card, out, message);
        case 3: return product<T, K, 3, STORE, MAX>(from, strides, dims, card, out, message);
        case 4: return product<T, K, 4, STORE, MAX>(from, strides, dims, card, out, message);
        default: return product<T, K, 0, STORE, MAX>(from, strides, dims, card, out, message);
    }
}

template <class T, bool STORE, bool MAX>
void product_with(size_t k, const T *const *from, const size_t *strides, size_t dims, const int *card, T *out, T *message) {
    switch (k) {
        case 0: return product_of<T, 0, STORE, MAX>(from, strides, dims, card, out, message);
        case 1: return product_of<T, 1, STORE, MAX>(from, strides, dims, card, out, message);
        case 2: return product_of<T, 2, STORE, MAX>(from, strides, dims, card, out, message);
        case 3: return product_of<T, 3, STORE, MAX>(from, strides, dims, card, out, message);
        default: return product_of<T, 4, STORE, MAX>(from, strides, dims, card, out, message);
    }
}

// Calls each(entry, offset) over a table, first axis fastest, with an offset that has strides of its own.
template <class T, class Each>
void walk(const T *table, size_t dims, const int *card, const size_t *stride, Each each) {
    int digit[64] = {0};
    size_t offset = 0;
    for (;;) {
        for (int i = 0; i < card[0]; ++i) each(*table++, offset + size_t(i) * stride[0]);
        size_t d = 1;
        for (; d < dims; ++d) {
            offset += stride[d];
            if (++digit[d] < card[d]) break;
            digit[d] = 0;
            offset -= size_t(card[d]) * stride[d];
        }
        if (d >= dims) return;
    }
}

enum class Status : long long { Fine = 0, Impossible = 1, Large = 2, Doubtful = 3 };

constexpr double TRY = 2048;     // entries above which a row has an order of its own
constexpr double FILL = 65536;   // above which the slower greedy order is tried too

// Factors of one row and the clusters of an elimination order, before any number is multiplied.
class Tree {
  public:
    struct Partial { int factor; size_t offset; int bucket; };
    const Network &net;
    std::vector<int> level;   // of each variable: what was seen, -1 open, -2 left out
    std::vector<int> rank;    // of open variables in the order
    std::vector<int> member;  // the variable at each rank
    std::vector<Partial> partial;
    std::vector<char> dropped;
    std::vector<size_t> rest_start;
    std::vector<int> rest;  // ranks of a cluster's other variables, ascending; the first is its parent
    double constant = 0, cost = 0, largest = 0;
    bool whole = false;  // whether every variable was seen

    explicit Tree(const Network &n) : net(n), level(n.V), rank(n.V), dropped(n.F) {}

    // False where the row is impossible. `prune`: variables that sum to one are left out.
    bool read(const double *codes, const double *row, bool prune) {
        int closed = 1, wrong = 0;
        for (size_t v = 0; v < net.V; ++v) {
            const double c = codes[v];
            const int seen = c == c, within = c >= 0 && c < net.levels[v];
            wrong |= seen & !within;
            const int l = net.levels[v] == 1 ? 0 : seen & within ? int(c) : -1;
            level[v] = l;
            closed &= l >= 0;
        }
        if (wrong) throw std::invalid_argument("codes: levels 0..card-1 or NaN are wanted");
        constant = 0, partial.clear(), whole = closed != 0;
        if (closed) return look_up(row);
        std::fill(dropped.begin(), dropped.end(), 0);
        if (prune) leave_out();
        for (size_t f = 0; f < net.F; ++f) {
            if (dropped[f]) continue;
            size_t offset = 0;
            bool open = false;
            for (long long k = net.starts[f]; k < net.starts[f + 1]; ++k) {
                const int l = level[size_t(net.flat[k])];
                if (l < 0) open = true;
                else offset += size_t(l) * net.stride[size_t(k)];
            }
            if (open) partial.push_back({int(f), offset, 0});
            else constant += net.log_at(f, offset, row);
        }
        return constant > -INFINITY;
    }

    bool look_up(const double *row) {
        const int *l = level.data();
        const size_t *stride = net.stride.data();
        for (size_t f = 0; f < net.F; ++f) {
            size_t offset = net.place[f];
            for (long long k = net.starts[f]; k < net.starts[f + 1]; ++k) offset += size_t(l[net.flat[k]]) * stride[k];
            constant += (net.mine[f] ? row : net.logs)[offset];
        }
        return constant > -INFINITY;
    }

    void leave_out() {
        for (int v : net.children_first) {
            const int f = net.head_of[size_t(v)];
            if (level[size_t(v)] != -1 || f < 0) continue;
            bool alone = true;
            for (int g : net.uses[size_t(v)]) alone &= dropped[size_t(g)] != 0;
            if (alone) dropped[size_t(f)] = 1, level[size_t(v)] = -2;
        }
    }

    void arrange() {
        member.clear();
        cost = largest = 0;
        if (whole) return;
        for (size_t i = 0; i < net.V; ++i)
            if (level[size_t(net.order[i])] == -1) member.push_back(int(net.order[i]));
        build();
        if (cost > TRY) improve(false);
        if (cost > FILL) improve(true);
    }

  private:
    std::vector<Bits> scope;

    void build() {
        const size_t m = member.size(), words = (m + 63) / 64;
        for (size_t r = 0; r < m; ++r) rank[size_t(member[r])] = int(r);
        scope.assign(m * words, 0);
        for (Partial &p : partial) {
            int first = int(m);
            for (long long k = net.starts[p.factor]; k < net.starts[p.factor + 1]; ++k)
                if (level[size_t(net.flat[k])] == -1) first = std::min(first, rank[size_t(net.flat[k])]);
            p.bucket = first;
            Bits *bits = scope.data() + size_t(first) * words;
            for (long long k = net.starts[p.factor]; k < net.starts[p.factor + 1]; ++k)
                if (level[size_t(net.flat[k])] == -1) {
                    const int r = rank[size_t(net.flat[k])];
                    bits[r / 64] |= Bits(1) << (r % 64);
                }
        }
        rest_start.assign(1, 0), rest.clear();
        cost = largest = 0;
        for (size_t e = 0; e < m; ++e) {
            Bits *bits = scope.data() + e * words;
            bits[e / 64] &= ~(Bits(1) << (e % 64));
            double size = double(net.cards[member[e]]);
            each_bit(bits, words, [&](int r) { rest.push_back(r), size *= double(net.cards[member[size_t(r)]]); });
            if (rest.size() > rest_start.back()) {
                Bits *up = scope.data() + size_t(rest[rest_start.back()]) * words;
                for (size_t w = 0; w < words; ++w) up[w] |= bits[w];
            }
            rest_start.push_back(rest.size());
            cost += size, largest = std::max(largest, size);
        }
    }

    void improve(bool fill) {
        const size_t m = member.size(), words = (m + 63) / 64;
        std::vector<Bits> beside(m * words, 0);
        std::vector<double> log_card(m);
        for (size_t r = 0; r < m; ++r) log_card[r] = std::log(double(net.cards[member[r]]));
        for (const Partial &p : partial)
            for (long long k = net.starts[p.factor]; k < net.starts[p.factor + 1]; ++k)
                for (long long l = net.starts[p.factor]; l < net.starts[p.factor + 1]; ++l)
                    if (k != l && level[size_t(net.flat[k])] == -1 && level[size_t(net.flat[l])] == -1) {
                        const int a = rank[size_t(net.flat[k])], b = rank[size_t(net.flat[l])];
                        beside[size_t(a) * words + size_t(b) / 64] |= Bits(1) << (b % 64);
                    }
        const std::vector<int> before = member, chosen = greedy(beside, m, words, log_card, fill);
        const double price = cost;
        for (size_t r = 0; r < m; ++r) member[r] = before[size_t(chosen[r])];
        build();
        if (cost < price) return;
        member = before;
        build();
    }
};

// The numbers of one row: clusters upwards, then whatever is asked on the way down.
template <class T>
class Row {
  public:
    const Tree &tree;
    const Network &net;
    T root = T(1.0);
    double scale = 0;  // log of what messages were divided by
    bool doubtful = false;

    explicit Row(const Tree &t) : tree(t), net(t.net) {}

    Status up(const double *own, bool store, bool maximum) {
        root = T(1.0), scale = 0, doubtful = false;
        layout(store);
        tables(own);
        for (size_t e = 0; e < clusters(); ++e) {
            gather(e);
            multiply(e, store, maximum);
            if (!pass(e, store)) return doubtful ? Status::Doubtful : Status::Impossible;
        }
        return doubtful ? Status::Doubtful : Status::Fine;
    }

    double nats() const { return tree.constant + tops + scale + log_of(root); }

    // Clusters become beliefs: each sums to one.
    void down() {
        for (size_t e = clusters(); e-- > 0;) {
            T *table = phi.data() + phi_at[e], *message = messages.data() + message_at[e];
            const size_t n = message_at[e + 1] - message_at[e], c0 = size_t(card(e));
            const T *wanted;
            if (rests(e) == 0) {
                one = T(1.0);
                wanted = &one;
            } else {
                wanted = parental(e, n);
            }
            for (size_t s = 0; s < n; ++s, table += c0) {
                if (is_zero(message[s])) continue;
                const T ratio = wanted[s] / message[s];
                for (size_t i = 0; i < c0; ++i) table[i] = table[i] * ratio;
            }
        }
    }

    void marginals(double *out, const std::vector<size_t> &at) const {
        for (size_t e = 0; e < clusters(); ++e) {
            double *mine = out + at[size_t(tree.member[e])];
            const size_t c0 = size_t(card(e));
            const T *table = phi.data() + phi_at[e];
            for (size_t s = message_at[e + 1] - message_at[e]; s > 0; --s)
                for (size_t i = 0; i < c0; ++i) mine[i] += plain(*table++);
        }
    }

    void counts(double weight, double *shared, double *own) {
        for (const Tree::Partial &p : tree.partial) {
            const size_t e = size_t(p.bucket), f = size_t(p.factor);
            axes(e);
            std::fill(strides.begin(), strides.begin() + long(dims), 0);
            factor_strides(f, strides.data());
            double *out = (net.mine[f] ? own : shared) + net.place[f] + p.offset;
            walk(phi.data() + phi_at[e], dims, cards, strides.data(), [&](const T &b, size_t at) { out[at] += weight * plain(b); });
        }
    }

    void best(int *chosen) {  // by rank
        for (size_t e = clusters(); e-- > 0;) {
            const T *table = at(e, chosen);
            int top = 0;
            for (int i = 1; i < card(e); ++i)
                if (table[top] < table[i]) top = i;
            chosen[e] = top;
        }
    }

    // Each variable's cumulated probabilities at every configuration of its cluster's others.
    void cumulate() {
        below.resize(phi_at[clusters()]);
        for (size_t e = 0; e < clusters(); ++e) {
            const int c0 = card(e);
            const T *table = phi.data() + phi_at[e];
            double *out = below.data() + phi_at[e];
            for (size_t s = message_at[e + 1] - message_at[e]; s > 0; --s, table += c0, out += c0) {
                T most = table[0];
                for (int i = 1; i < c0; ++i) most = larger(most, table[i]);
                double total = 0;
                int last = 0;
                for (int i = 0; i < c0 && !is_zero(most); ++i) {
                    out[i] = total += plain(table[i] / most);
                    if (!is_zero(table[i])) last = i;
                }
                for (int i = 0; i < c0; ++i) out[i] = i < last ? out[i] / total : 2;  // no uniform gets past the last
            }
        }
    }

    void draw(const double *uniforms, int *chosen) const {
        for (size_t e = clusters(); e-- > 0;) {
            const double *table = below.data() + phi_at[e] + place(e, chosen), u = uniforms[tree.member[e]];
            const int c0 = card(e);
            int pick = 0;
            if (c0 <= 8)  // without a branch to guess
                for (int i = 0; i < c0; ++i) pick += u >= table[i];
            else
                while (u >= table[pick]) ++pick;
            chosen[e] = pick;
        }
    }

  private:
    std::vector<T> phi, messages, own_tables, passed;
    std::vector<size_t> phi_at, message_at, strides;
    std::vector<double> lows, own_low, below;
    std::vector<size_t> step_of;  // beside tree.rest: how far apart the levels of that variable lie in the cluster
    std::vector<int> first_child, next_child, first_partial, next_partial;
    std::vector<const T *> from;
    T one = T(1.0);
    double tops = 0;
    size_t dims = 0;
    int cards[64], position[64];
    std::vector<int> axis_of;
    double floor = 1;  // no product of this cluster's inputs is smaller, zeros aside

    size_t clusters() const { return tree.member.size(); }
    int card(size_t e) const { return int(net.cards[tree.member[e]]); }
    size_t rests(size_t e) const { return tree.rest_start[e + 1] - tree.rest_start[e]; }

    void layout(bool store) {
        const size_t m = clusters();
        phi_at.assign(m + 1, 0), message_at.assign(m + 1, 0), step_of.resize(tree.rest.size());
        size_t most = 0;
        for (size_t e = 0; e < m; ++e) {
            size_t n = 1;
            for (size_t k = tree.rest_start[e]; k < tree.rest_start[e + 1]; ++k)
                step_of[k] = n * size_t(card(e)), n *= size_t(card(size_t(tree.rest[k])));
            message_at[e + 1] = message_at[e] + n;
            most = std::max(most, n * size_t(card(e)));
            phi_at[e + 1] = store ? phi_at[e] + n * size_t(card(e)) : 0;
        }
        if (messages.size() < message_at[m]) messages.resize(message_at[m]);
        const size_t room = store ? phi_at[m] : most;
        if (phi.size() < room) phi.resize(room);
        lows.assign(m, 1.0), axis_of.resize(m);
        first_child.assign(m, -1), next_child.assign(m, -1), first_partial.assign(m, -1), next_partial.assign(tree.partial.size(), -1);
        for (size_t i = tree.partial.size(); i-- > 0;) {
            const size_t e = size_t(tree.partial[i].bucket);
            next_partial[i] = first_partial[e], first_partial[e] = int(i);
        }
    }

    void tables(const double *own);

    const T *shared_table(size_t f) const;

    void axes(size_t e) {
        dims = 1;
        cards[0] = card(e), axis_of[e] = 0;
        for (size_t k = tree.rest_start[e]; k < tree.rest_start[e + 1]; ++k) {
            const size_t r = size_t(tree.rest[k]);
            axis_of[r] = int(dims), cards[dims++] = card(r);
        }
        if (strides.size() < dims) strides.resize(dims);
    }

    void factor_strides(size_t f, size_t *out) const {
        for (long long k = net.starts[f]; k < net.starts[f + 1]; ++k) {
            const size_t v = size_t(net.flat[k]);
            if (tree.level[v] == -1) out[axis_of[size_t(tree.rank[v])]] = net.stride[size_t(k)];
        }
    }

    void message_strides(size_t child, size_t *out) const {
        size_t step = 1;
        for (size_t k = tree.rest_start[child]; k < tree.rest_start[child + 1]; ++k) {
            const size_t r = size_t(tree.rest[k]);
            out[axis_of[r]] = step, step *= size_t(card(r));
        }
    }

    void gather(size_t e) {
        axes(e);
        from.clear();
        floor = 1;
        size_t n = 0;
        for (int i = first_partial[e]; i >= 0; i = next_partial[size_t(i)]) ++n;
        for (int c = first_child[e]; c >= 0; c = next_child[size_t(c)]) ++n;
        if (strides.size() < (n + 1) * dims) strides.resize((n + 1) * dims);
        std::fill(strides.begin(), strides.begin() + long(n * dims), 0);
        for (int i = first_partial[e]; i >= 0; i = next_partial[size_t(i)]) {
            const Tree::Partial &p = tree.partial[size_t(i)];
            const size_t f = size_t(p.factor);
            factor_strides(f, strides.data() + from.size() * dims);
            from.push_back((net.mine[f] ? own_tables.data() + net.place[f] : shared_table(f)) + p.offset);
            floor *= net.mine[f] ? own_low[f] : net.low[f];
        }
        for (int c = first_child[e]; c >= 0; c = next_child[size_t(c)]) {
            message_strides(size_t(c), strides.data() + from.size() * dims);
            from.push_back(messages.data() + message_at[size_t(c)]);
            floor *= lows[size_t(c)];
        }
    }

    template <bool STORE, bool MAX>
    void run(size_t k, const T *const *tables, const size_t *steps, T *out, T *message) {
        product_with<T, STORE, MAX>(k, tables, steps, dims, cards, out, message);
    }

    void multiply(size_t e, bool store, bool maximum) {
        T *out = phi.data() + phi_at[e], *message = messages.data() + message_at[e];
        size_t done = 0;
        while (from.size() - done > 4) {  // four at a time, the product so far among them
            run<true, false>(4, from.data() + done, strides.data() + done * dims, out, message);
            done += 3;
            from[done] = out;
            for (size_t d = 0, step = 1; d < dims; step *= size_t(cards[d++])) strides[done * dims + d] = step;
        }
        const size_t left = from.size() - done;
        const T *const *tables = from.data() + done;
        const size_t *steps = strides.data() + done * dims;
        if (maximum) run<true, true>(left, tables, steps, out, message);
        else if (store) run<true, false>(left, tables, steps, out, message);
        else run<false, false>(left, tables, steps, out, message);
    }

    // Scales a cluster's message and hands it to its parent; false where all is zero.
    bool pass(size_t e, bool store);

    void hand_over(size_t e) {
        if (rests(e) == 0) {
            root = root * messages[message_at[e]];
            return;
        }
        const size_t parent = size_t(tree.rest[tree.rest_start[e]]);
        next_child[e] = first_child[parent], first_child[parent] = int(e);
    }

    // The parent's belief summed to what it shares with cluster e, laid out as e's message.
    const T *parental(size_t e, size_t n) {
        const size_t parent = size_t(tree.rest[tree.rest_start[e]]);
        const T *table = phi.data() + phi_at[parent];
        if (rests(e) == rests(parent) + 1) return table;  // all of it, in the same order
        axes(parent);
        std::fill(strides.begin(), strides.begin() + long(dims), 0);
        message_strides(e, strides.data());
        passed.assign(n, T(0.0));
        T *out = passed.data();
        walk(table, dims, cards, strides.data(), [&](const T &b, size_t at) { out[at] = out[at] + b; });
        return out;
    }

    // The cluster's numbers at the levels chosen for its other variables.
    const T *at(size_t e, const int *chosen) const { return phi.data() + phi_at[e] + place(e, chosen); }

    size_t place(size_t e, const int *chosen) const {
        size_t offset = 0;
        for (size_t k = tree.rest_start[e]; k < tree.rest_start[e + 1]; ++k) offset += size_t(chosen[tree.rest[k]]) * step_of[k];
        return offset;
    }
};

template <>
void Row<double>::tables(const double *own) {
    tops = 0;
    if (net.width) own_tables.resize(net.width), own_low.resize(net.F);
    for (const Tree::Partial &p : tree.partial) {
        const size_t f = size_t(p.factor);
        if (net.mine[f]) tops += Network::exponents(own + net.place[f], net.size[f], own_tables.data() + net.place[f], own_low[f]);
        else tops += net.top[f];
    }
}

template <>
void Row<Wide>::tables(const double *own) {
    tops = 0;
    if (net.width) own_tables.resize(net.width), own_low.assign(net.F, 1.0);
    for (size_t i = 0; i < net.width; ++i) own_tables[i] = Wide::of_log(own[i]);
}

template <>
const double *Row<double>::shared_table(size_t f) const { return net.linear.data() + net.place[f]; }
template <>
const Wide *Row<Wide>::shared_table(size_t f) const { return net.wide.data() + net.place[f]; }

template <>
bool Row<double>::pass(size_t e, bool store) {
    double *message = messages.data() + message_at[e], most = 0, least = INFINITY;
    const size_t n = message_at[e + 1] - message_at[e];
    bool zeros = false;
    for (size_t s = 0; s < n; ++s) {
        const double x = message[s];
        most = x > most ? x : most;
        if (x == 0) zeros = true;
        else least = x < least ? x : least;
    }
    if (floor < 1e-290 && (zeros || least < 1e-280)) {
        doubtful = true;
        return false;
    }
    if (most == 0) return false;
    if (most < 1e-60 || most > 1e60) {
        const double by = 1 / most;
        for (size_t s = 0; s < n; ++s) message[s] *= by;
        if (store) {
            double *table = phi.data() + phi_at[e];
            for (size_t i = n * size_t(card(e)); i > 0; --i) *table++ *= by;
        }
        scale += std::log(most);
        least *= by;
    }
    lows[e] = std::min(1.0, least);
    hand_over(e);
    if (root < 1e-200 || root > 1e200) scale += std::log(root), root = 1;
    return true;
}

template <>
bool Row<Wide>::pass(size_t e, bool) {
    const Wide *message = messages.data() + message_at[e];
    bool some = false;
    for (size_t s = message_at[e + 1] - message_at[e]; s > 0; --s) some |= !is_zero(*message++);
    if (some) hand_over(e);
    return some;
}

struct Task {  // what one call asks for
    const double *codes = nullptr, *weights = nullptr, *uniforms = nullptr;
    size_t n = 0, draws = 0, levels = 0;
    double limit = 0;
    double *nats = nullptr, *probs = nullptr, *counts = nullptr, *own_counts = nullptr, *out = nullptr;
    long long *status = nullptr;
    bool maximum = false;
    std::vector<size_t> level_at;
    bool full() const { return probs || counts || out; }
};

// All rows of [begin, end); `counts` is this worker's own.
class Worker {
  public:
    Worker(Network &n, const Task &t) : net(n), task(t), tree(n), row(tree), wide(tree) {}

    void one(size_t i, double *counts) {
        const double *own = net.own ? net.own + i * net.width : nullptr;
        Status status = Status::Impossible;
        if (tree.read(task.codes + i * net.V, own, !task.full())) {
            tree.arrange();
            if (tree.member.empty() && !task.full()) {
                task.nats[i] = tree.constant, task.status[i] = 0;
                return;
            }
            if (tree.cost > task.limit) status = Status::Large;
            else if ((status = run(row, i, own, counts)) == Status::Doubtful) {
                widen();
                status = run(wide, i, own, counts);
            }
        }
        task.status[i] = (long long)status;
        if (status != Status::Fine) refuse(i, status);
    }

    // Rows [begin, begin + n) looked up column by column; false, and nothing done, where one of them has gaps.
    bool complete_rows(size_t begin, size_t n) {
        if (task.full() || net.F == 0) return false;
        cells.resize(net.V * BLOCK);
        int odd = 0;
        for (size_t r = 0; r < n; ++r) {
            const double *codes = task.codes + (begin + r) * net.V;
            for (size_t v = 0; v < net.V; ++v) {
                cells[v * BLOCK + r] = codes[v];
                odd |= !(codes[v] >= 0 && codes[v] < net.levels[v]);
            }
        }
        if (odd) return false;
        double sums[BLOCK] = {0}, at[BLOCK];
        for (size_t f = 0; f < net.F; ++f) {
            std::fill(at, at + BLOCK, 0.0);
            for (long long k = net.starts[f]; k < net.starts[f + 1]; ++k) {
                const double *column = cells.data() + size_t(net.flat[k]) * BLOCK, step = double(net.stride[size_t(k)]);
                for (size_t r = 0; r < BLOCK; ++r) at[r] += step * column[r];
            }
            const double *table = net.mine[f] ? net.own + begin * net.width + net.place[f] : net.logs + net.place[f];
            const size_t width = net.mine[f] ? net.width : 0;
            for (size_t r = 0; r < n; ++r) sums[r] += table[r * width + size_t(at[r])];
        }
        for (size_t r = 0; r < n; ++r) {
            task.nats[begin + r] = sums[r];
            task.status[begin + r] = (long long)(sums[r] > -INFINITY ? Status::Fine : Status::Impossible);
        }
        return true;
    }

    static constexpr size_t BLOCK = 64;

  private:
    std::vector<double> cells;
    Network &net;
    const Task &task;
    Tree tree;
    Row<double> row;
    Row<Wide> wide;
    std::vector<int> chosen;
    static std::mutex guard;

    void widen() {
        const std::lock_guard<std::mutex> lock(guard);
        if (net.wide.size() == net.linear.size()) return;
        std::vector<Wide> made(net.linear.size());
        for (size_t i = 0; i < made.size(); ++i) made[i] = Wide::of_log(net.logs[i]);
        net.wide.swap(made);
    }

    template <class T>
    Status run(Row<T> &numbers, size_t i, const double *own, double *counts) {
        const Status status = numbers.up(own, task.full(), task.maximum);
        if (status != Status::Fine) return status;
        task.nats[i] = numbers.nats();
        if (task.probs || task.counts) numbers.down();
        if (task.probs) {
            double *probs = task.probs + i * task.levels;
            numbers.marginals(probs, task.level_at);
            for (size_t v = 0; v < net.V; ++v)
                if (tree.level[v] >= 0) probs[task.level_at[v] + size_t(tree.level[v])] = 1;
        }
        if (task.counts) {
            const double weight = task.weights[i];
            double *mine = task.own_counts ? task.own_counts + i * net.width : nullptr;
            seen(weight, counts, mine);
            numbers.counts(weight, counts, mine);
        }
        if (task.out) complete(numbers, i);
        return status;
    }

    void seen(double weight, double *shared, double *own) const {
        for (size_t f = 0; f < net.F; ++f) {
            size_t offset = 0;
            bool open = false;
            for (long long k = net.starts[f]; k < net.starts[f + 1]; ++k) {
                const int l = tree.level[size_t(net.flat[k])];
                open |= l < 0;
                offset += l < 0 ? 0 : size_t(l) * net.stride[size_t(k)];
            }
            if (!open) (net.mine[f] ? own : shared)[net.place[f] + offset] += weight;
        }
    }

    template <class T>
    void complete(Row<T> &numbers, size_t i) {
        chosen.assign(tree.member.size() + 1, 0);
        if (!task.maximum) numbers.cumulate();
        for (size_t d = 0; d < task.draws; ++d) {
            double *out = task.out + (i * task.draws + d) * net.V;
            if (task.maximum) numbers.best(chosen.data());
            else numbers.draw(task.uniforms + (i * task.draws + d) * net.V, chosen.data());
            for (size_t v = 0; v < net.V; ++v)
                out[v] = tree.level[v] == -1 ? double(chosen[size_t(tree.rank[v])]) : double(tree.level[v]);
        }
    }

    void refuse(size_t i, Status status) const {
        task.nats[i] = status == Status::Impossible ? -INFINITY : NAN;
        if (task.probs) std::fill(task.probs + i * task.levels, task.probs + (i + 1) * task.levels, NAN);
        if (task.out) std::fill(task.out + i * task.draws * net.V, task.out + (i + 1) * task.draws * net.V, NAN);
    }
};

std::mutex Worker::guard;

void solve(Network &net, Task &task, int threads) {
    constexpr size_t BLOCK = Worker::BLOCK;
    const size_t blocks = (task.n + BLOCK - 1) / BLOCK, tasks = task.counts ? std::min<size_t>(blocks, 8) : blocks;
    const size_t workers = size_t(std::max(1, threads)), shared = net.linear.size();
    std::vector<std::unique_ptr<Worker>> crew(std::min(workers, std::max<size_t>(tasks, 1)));
    for (auto &worker : crew) worker.reset(new Worker(net, task));
    // counts are added up task by task, so that the bits don't depend on the threads
    std::vector<std::vector<double>> sums(task.counts ? tasks : 0);
    spread(tasks, threads, [&](size_t t, size_t worker) {
        double *counts = nullptr;
        if (task.counts) sums[t].assign(shared, 0.0), counts = sums[t].data();
        const size_t begin = t * blocks / tasks * BLOCK, end = std::min(task.n, (t + 1) * blocks / tasks * BLOCK);
        if (end - begin <= BLOCK && crew[worker]->complete_rows(begin, end - begin)) return;
        for (size_t i = begin; i < end; ++i) crew[worker]->one(i, counts);
    });
    for (auto &each : sums)
        for (size_t k = 0; k < shared; ++k) task.counts[k] += each[k];
}

// Buffers of a network: (cards, starts, flat, heads, order, logs, mine, own or None).
struct Held {
    Buffer cards, starts, flat, heads, order, logs, mine, own, codes;
    Network net;
    Py_ssize_t n = 0;

    bool read(PyObject *tuple, PyObject *pcodes) {
        PyObject *c, *s, *f, *h, *o, *l, *m, *w;
        if (!PyArg_ParseTuple(tuple, "OOOOOOOO", &c, &s, &f, &h, &o, &l, &m, &w)) return false;
        if (!take(c, "cards", 'q', {-1}, false, cards)) return false;
        const Py_ssize_t V = cards.view.shape[0];
        if (!take(h, "heads", 'q', {-1}, false, heads) || !take(o, "order", 'q', {V}, false, order)) return false;
        const Py_ssize_t F = heads.view.shape[0];
        if (!take(s, "starts", 'q', {F + 1}, false, starts) || !take(f, "flat", 'q', {-1}, false, flat) ||
            !take(m, "mine", 'q', {F}, false, mine) || !take(l, "logs", 'd', {-1}, false, logs) ||
            !take(pcodes, "codes", 'd', {-1, V}, false, codes))
            return false;
        n = codes.view.shape[0];
        net.V = size_t(V), net.F = size_t(F), net.cards = cards.whole(), net.starts = starts.whole(), net.flat = flat.whole();
        net.heads = heads.whole(), net.order = order.whole(), net.mine = mine.whole(), net.logs = logs.numbers();
        if (!sound()) {
            PyErr_SetString(PyExc_ValueError, "net: positive cards, an order of all variables, factors of known ones are wanted");
            return false;
        }
        size_t shared = 0, row = 0;
        for (size_t i = 0; i < net.F; ++i) {
            size_t size = 1;
            for (long long k = net.starts[i]; k < net.starts[i + 1]; ++k) size *= size_t(net.cards[net.flat[k]]);
            (net.mine[i] ? row : shared) += size;
        }
        if (shared != size_t(logs.view.shape[0])) {
            PyErr_SetString(PyExc_ValueError, "logs: one entry a configuration of each shared factor is wanted");
            return false;
        }
        if (w != Py_None) {
            if (!take(w, "own", 'd', {n, Py_ssize_t(row)}, false, own)) return false;
            net.own = own.numbers();
        } else if (row) {
            PyErr_SetString(PyExc_ValueError, "own: the rows' own tables are wanted");
            return false;
        }
        return true;
    }

    bool sound() const {
        std::vector<char> met(net.V, 0);
        for (size_t v = 0; v < net.V; ++v) {
            const long long u = net.order[v];
            if (net.cards[v] < 1 || net.cards[v] > (1 << 30) || u < 0 || u >= (long long)net.V || met[size_t(u)]++) return false;
        }
        if (net.starts[0] != 0 || net.starts[net.F] != flat.view.shape[0]) return false;
        for (size_t f = 0; f < net.F; ++f) {
            if (net.starts[f + 1] < net.starts[f]) return false;
            bool head = net.heads[f] < 0;
            double size = 1;
            for (long long k = net.starts[f]; k < net.starts[f + 1]; ++k) {
                if (net.flat[k] < 0 || net.flat[k] >= (long long)net.V) return false;
                head |= net.flat[k] == net.heads[f];
                size *= double(net.cards[net.flat[k]]);
                for (long long l = net.starts[f]; l < k; ++l)
                    if (net.flat[l] == net.flat[k]) return false;
            }
            if (!head || size > 1e15) return false;
        }
        return true;
    }
};

struct Common {  // limit, threads, nats, status
    Buffer nats, status;
    bool read(Task &task, const Held &held, double limit, PyObject *pnats, PyObject *pstatus) {
        if (!take(pnats, "nats", 'd', {held.n}, true, nats) || !take(pstatus, "status", 'q', {held.n}, true, status)) return false;
        task.n = size_t(held.n), task.codes = held.codes.numbers(), task.limit = std::min(limit, 1e12);
        task.nats = nats.numbers(), task.status = status.whole();
        return true;
    }
};

PyObject *finish(Held &held, Task &task, int threads) {
    return unlocked([&] {
        held.net.prepare();
        solve(held.net, task, threads);
    });
}

PyObject *log_prob(PyObject *, PyObject *args) {
    PyObject *net, *codes, *nats, *status;
    double limit;
    int threads;
    if (!PyArg_ParseTuple(args, "OOdiOO", &net, &codes, &limit, &threads, &nats, &status)) return nullptr;
    Held held;
    Task task;
    Common common;
    if (!held.read(net, codes) || !common.read(task, held, limit, nats, status)) return nullptr;
    return finish(held, task, threads);
}

PyObject *marginals(PyObject *, PyObject *args) {
    PyObject *net, *codes, *nats, *status, *probs;
    double limit;
    int threads;
    if (!PyArg_ParseTuple(args, "OOdiOOO", &net, &codes, &limit, &threads, &nats, &status, &probs)) return nullptr;
    Held held;
    Task task;
    Common common;
    Buffer out;
    if (!held.read(net, codes) || !common.read(task, held, limit, nats, status)) return nullptr;
    for (size_t v = 0; v < held.net.V; ++v) task.level_at.push_back(task.levels), task.levels += size_t(held.net.cards[v]);
    if (!take(probs, "probs", 'd', {held.n, Py_ssize_t(task.levels)}, true, out)) return nullptr;
    task.probs = out.numbers();
    std::fill(task.probs, task.probs + task.n * task.levels, 0.0);
    return finish(held, task, threads);
}

PyObject *expected(PyObject *, PyObject *args) {
    PyObject *net, *codes, *weights, *nats, *status, *counts, *own;
    double limit;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOdiOOOO", &net, &codes, &weights, &limit, &threads, &nats, &status, &counts, &own)) return nullptr;
    Held held;
    Task task;
    Common common;
    Buffer w, out, mine;
    if (!held.read(net, codes) || !common.read(task, held, limit, nats, status) || !take(weights, "weights", 'd', {held.n}, false, w) ||
        !take(counts, "counts", 'd', {held.logs.view.shape[0]}, true, out))
        return nullptr;
    if (held.net.own) {
        if (!take(own, "own counts", 'd', {held.n, held.own.view.shape[1]}, true, mine)) return nullptr;
        task.own_counts = mine.numbers();
        std::fill(task.own_counts, task.own_counts + held.n * held.own.view.shape[1], 0.0);
    }
    task.weights = w.numbers(), task.counts = out.numbers();
    std::fill(task.counts, task.counts + held.logs.view.shape[0], 0.0);
    return finish(held, task, threads);
}

PyObject *best(PyObject *, PyObject *args) {
    PyObject *net, *codes, *nats, *status, *pout;
    double limit;
    int threads;
    if (!PyArg_ParseTuple(args, "OOdiOOO", &net, &codes, &limit, &threads, &nats, &status, &pout)) return nullptr;
    Held held;
    Task task;
    Common common;
    Buffer out;
    if (!held.read(net, codes) || !common.read(task, held, limit, nats, status) ||
        !take(pout, "out", 'd', {held.n, Py_ssize_t(held.net.V)}, true, out))
        return nullptr;
    task.out = out.numbers(), task.maximum = true, task.draws = 1;
    return finish(held, task, threads);
}

PyObject *sample(PyObject *, PyObject *args) {
    PyObject *net, *codes, *uniforms, *nats, *status, *pout;
    double limit;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOdiOOO", &net, &codes, &uniforms, &limit, &threads, &nats, &status, &pout)) return nullptr;
    Held held;
    Task task;
    Common common;
    Buffer u, out;
    if (!held.read(net, codes) || !common.read(task, held, limit, nats, status)) return nullptr;
    const Py_ssize_t V = Py_ssize_t(held.net.V);
    if (!take(uniforms, "uniforms", 'd', {held.n, -1, V}, false, u)) return nullptr;
    if (!take(pout, "out", 'd', {held.n, u.view.shape[1], V}, true, out)) return nullptr;
    task.uniforms = u.numbers(), task.out = out.numbers(), task.draws = size_t(u.view.shape[1]);
    return finish(held, task, threads);
}

PyObject *cost(PyObject *, PyObject *args) {
    PyObject *net, *codes, *pout;
    int full, threads;
    if (!PyArg_ParseTuple(args, "OOpiO", &net, &codes, &full, &threads, &pout)) return nullptr;
    Held held;
    Buffer out;
    if (!held.read(net, codes) || !take(pout, "out", 'd', {held.n}, true, out)) return nullptr;
    return unlocked([&] {
        held.net.prepare();
        constexpr size_t BLOCK = 64;
        const size_t n = size_t(held.n);
        spread((n + BLOCK - 1) / BLOCK, threads, [&](size_t b, size_t) {
            Tree tree(held.net);
            for (size_t i = b * BLOCK; i < std::min(n, (b + 1) * BLOCK); ++i) {
                const bool possible = tree.read(held.codes.numbers() + i * held.net.V, held.net.own ? held.net.own + i * held.net.width : nullptr, !full);
                if (possible) tree.arrange();
                out.numbers()[i] = possible ? tree.cost : 0;
            }
        });
    });
}

PyObject *order(PyObject *, PyObject *args) {
    PyObject *pcards, *pstarts, *pflat, *pout;
    if (!PyArg_ParseTuple(args, "OOOO", &pcards, &pstarts, &pflat, &pout)) return nullptr;
    Buffer cards, starts, flat, out;
    if (!take(pcards, "cards", 'q', {-1}, false, cards) || !take(pstarts, "starts", 'q', {-1}, false, starts) ||
        !take(pflat, "flat", 'q', {-1}, false, flat) || !take(pout, "found", 'q', {2, cards.view.shape[0]}, true, out))
        return nullptr;
    const size_t V = size_t(cards.view.shape[0]);
    const Py_ssize_t F = starts.view.shape[0] - 1;
    bool sound = F >= 0 && starts.whole()[0] == 0 && starts.whole()[F] == flat.view.shape[0];
    for (Py_ssize_t f = 0; sound && f < F; ++f) sound = starts.whole()[f] <= starts.whole()[f + 1];
    for (Py_ssize_t k = 0; sound && k < flat.view.shape[0]; ++k) sound = flat.whole()[k] >= 0 && flat.whole()[k] < (long long)V;
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "starts, flat: factors of known variables are wanted");
        return nullptr;
    }
    return unlocked([&] {
        const size_t words = (V + 63) / 64;
        std::vector<Bits> beside(V * words, 0);
        std::vector<double> log_card(V);
        for (size_t v = 0; v < V; ++v) log_card[v] = std::log(double(cards.whole()[v]));
        for (Py_ssize_t f = 0; f < F; ++f)
            for (long long k = starts.whole()[f]; k < starts.whole()[f + 1]; ++k)
                for (long long l = starts.whole()[f]; l < starts.whole()[f + 1]; ++l) {
                    const size_t a = size_t(flat.whole()[k]), b = size_t(flat.whole()[l]);
                    if (a != b) beside[a * words + b / 64] |= Bits(1) << (b % 64);
                }
        for (int fill = 0; fill < 2; ++fill) {
            const std::vector<int> found = greedy(beside, V, words, log_card, fill == 0);
            for (size_t v = 0; v < V; ++v) out.whole()[size_t(fill) * V + v] = found[v];
        }
    });
}

PyMethodDef methods[] = {
    {"log_prob", log_prob, METH_VARARGS,
     "log_prob(net, codes, limit, threads, nats, status)\n\n"
     "net: (cards (V,), starts (F + 1,), flat, heads (F,), order (V,), logs, mine (F,), own): flat[starts[f]:starts[f + 1]] are\n"
     "factor f's variables, heads the one it sums to one over or -1; logs has the shared factors' log tables one after another,\n"
     "own (n, width) those of factors with mine = 1, one a row, or None. codes (n, V): levels, NaN where open.\n"
     "Writes nats (n,) and status (n,): 0 fine, 1 impossible (-inf), 2 more table entries than limit (NaN)."},
    {"marginals", marginals, METH_VARARGS,
     "marginals(net, codes, limit, threads, nats, status, probs)\n\n"
     "Also each variable's distribution given the row into probs (n, sum of cards), NaN where nats is not finite."},
    {"expected", expected, METH_VARARGS,
     "expected(net, codes, weights, limit, threads, nats, status, counts, own_counts)\n\n"
     "Also weights times the posterior of each factor's configuration, summed over rows into counts (laid out as logs), by row\n"
     "into own_counts (laid out as own, or None)."},
    {"best", best, METH_VARARGS,
     "best(net, codes, limit, threads, nats, status, out)\n\nThe most probable completion into out (n, V), its log into nats."},
    {"sample", sample, METH_VARARGS,
     "sample(net, codes, uniforms, limit, threads, nats, status, out)\n\n"
     "Draws of the open variables given the row, by inversion of uniforms (n, draws, V), into out of that shape."},
    {"cost", cost, METH_VARARGS,
     "cost(net, codes, full, threads, out)\n\nTable entries of each row into out (n,); full: without leaving any variable out."},
    {"order", order, METH_VARARGS,
     "order(cards, starts, flat, found)\n\nGreedy elimination orders, min-fill and min-weight, into found (2, V)."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cliques", "Sums over discrete factors.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cliques(void) { return PyModule_Create(&module); }
