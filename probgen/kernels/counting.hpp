// Contingency tables, and the scores of a family and of all families one parent away from it. Included by counting.cpp.
namespace {

typedef std::uint32_t U32;

constexpr size_t LANE = 32, BLOCK = 2 * LANE;  // bytes of a one-hot row added up at once
constexpr size_t NARROW = 48;   // columns of more levels are not packed
constexpr size_t DIRECT = 8192; // counts whose log-gamma is kept

#if defined(__GNUC__)
typedef unsigned char Bytes __attribute__((vector_size(LANE), may_alias));
#else
struct Bytes {
    unsigned char at[LANE];
    unsigned char operator[](size_t k) const { return at[k]; }
    void operator+=(const Bytes &other) {
        for (size_t k = 0; k < LANE; ++k) at[k] = (unsigned char)(at[k] + other.at[k]);
    }
};
#endif

PROBGEN_CLONES void mix(const std::uint16_t *column, U32 card, U32 *code, size_t n) {
    for (size_t i = 0; i < n; ++i) code[i] = code[i] * card + column[i];
}

// Sums of packed rows, `width` a multiple of BLOCK, into out.
PROBGEN_CLONES void add_rows(const unsigned char *hot, size_t width, const U32 *rows, size_t count, U32 *out) {
    for (size_t b = 0; b < width; b += BLOCK)
        for (size_t done = 0; done < count;) {
            const size_t stop = std::min(count, done + 255);
            Bytes low{}, high{};
            for (size_t i = done; i < stop; ++i) {
                const Bytes *row = reinterpret_cast<const Bytes *>(hot + rows[i] * width + b);
                low += row[0], high += row[1];
            }
            U32 *to = out + b;
            if (!done) std::fill(to, to + BLOCK, 0);
            for (size_t k = 0; k < LANE; ++k) to[k] += low[k];
            for (size_t k = 0; k < LANE; ++k) to[LANE + k] += high[k];
            done = stop;
        }
}

PROBGEN_CLONES void add_curve(const double *curve, const U32 *counts, size_t n, double sign, double *out) {
    for (size_t i = 0; i < n; ++i) out[i] += sign * curve[counts[i]];
}

PROBGEN_CLONES void add_counts(const U32 *from, size_t n, U32 *to) {
    for (size_t i = 0; i < n; ++i) to[i] += from[i];
}

struct Table {
    size_t V = 0, n = 0;
    std::vector<U32> cards;
    std::vector<std::uint16_t> columns;  // (V, n)

    const std::uint16_t *column(size_t v) const { return columns.data() + v * n; }

    // Counts of a family, the child first in `family` and last in the table; the number of cells.
    size_t contingency(const std::vector<size_t> &family, std::vector<U32> &code, long long *out) const {
        size_t cells = 1;
        std::fill(code.begin(), code.end(), 0);
        for (size_t k = 1; k <= family.size(); ++k) {
            const size_t v = family[k % family.size()];
            mix(column(v), cards[v], code.data(), n);
            cells *= cards[v];
        }
        std::fill(out, out + cells, 0);
        for (size_t i = 0; i < n; ++i) ++out[code[i]];
        return cells;
    }
};

enum class Kind { Likelihood, Bic, Aic, Bdeu, K2 };

struct Score {
    Kind kind = Kind::Bic;
    double ess = 1, scale = 1;
    bool choose(int number) {
        kind = Kind(number);
        if (number >= 0 && number <= 4 && ess > 0 && scale > 0 && std::isfinite(ess) && std::isfinite(scale)) return true;
        PyErr_SetString(PyExc_ValueError, "kind from 0 to 4, and ess and scale above 0 are wanted");
        return false;
    }
    bool bayesian() const { return kind == Kind::Bdeu || kind == Kind::K2; }
    // Pseudo-counts of a cell and of a parent configuration; of a family with q configurations and r levels.
    double cell(double q, double r) const { return kind == Kind::Bdeu ? ess / (q * r) : kind == Kind::K2 ? 1 : 0; }
    double config(double q, double r) const { return kind == Kind::Bdeu ? ess / q : kind == Kind::K2 ? r : 0; }
    double penalty(double q, double r, double n) const {
        return kind == Kind::Bic ? 0.5 * std::log(n * scale) * q * (r - 1) : kind == Kind::Aic ? q * (r - 1) : 0;
    }
};

// k -> lgamma(k + alpha) - lgamma(alpha), or k log k where alpha is 0; k counts rows, which weigh `scale`.
struct Curve {
    double alpha = 0, scale = 1, start = 0;
    std::vector<double> values{0.0};

    double value(double k) const {
        k *= scale;
        return alpha > 0 ? (k > 0 ? std::lgamma(k + alpha) - start : 0.0) : (k > 0 ? k * std::log(k) : 0.0);
    }
    // Keeps the counts up to `most`; log-gammas by recursion, anchored every 64 so that rounding does not add up.
    void reach(size_t most) {
        values.reserve(most + 1);
        for (size_t k = values.size(); k <= most; ++k) {
            const bool step = alpha > 0 && scale == 1 && k % 64;
            values.push_back(step ? values[k - 1] + std::log(double(k - 1) + alpha) : value(double(k)));
        }
    }
    double operator()(U32 k) const { return k < values.size() ? values[k] : value(k); }
};

class Evaluator {
  public:
    const size_t V, n;
    const Table &table;
    const Score score;

    Evaluator(const Table &t, const Score &s) : V(t.V), n(t.n), table(t), score(s), code(n), order(n), spare(n) {
        std::vector<size_t> sorted(V);
        for (size_t v = 0; v < V; ++v) sorted[v] = v;
        std::stable_sort(sorted.begin(), sorted.end(), [&](size_t a, size_t b) { return t.cards[a] < t.cards[b]; });
        offset.assign(V, 0);
        for (size_t v : sorted) {
            if (t.cards[v] > NARROW) { wide.push_back(v); continue; }
            if (segments.empty() || segments.back().card != t.cards[v]) segments.push_back({t.cards[v], width, width});
            offset[v] = width, width += t.cards[v], segments.back().end = width;
            most_levels = std::max<size_t>(most_levels, t.cards[v]);
        }
        used = width;
        width = (width + BLOCK - 1) / BLOCK * BLOCK;
        space.assign(n * width + BLOCK, 0);
        hot = reinterpret_cast<unsigned char *>((reinterpret_cast<std::uintptr_t>(space.data()) + BLOCK - 1) & ~std::uintptr_t(BLOCK - 1));
        for (size_t v = 0; v < V; ++v)
            if (t.cards[v] <= NARROW)
                for (size_t i = 0; i < n; ++i) hot[i * width + offset[v] + t.column(v)[i]] = 1;
        counts.assign(width, 0), totals.assign(width, 0), sums.assign(width, 0.0);
        size_t widest = 0;
        for (size_t v : wide) widest = std::max<size_t>(widest, t.cards[v]);
        wide_counts.assign(widest, 0), wide_totals.assign(widest, 0);
    }

    // Writes V scores: the family's in the child's place, in place z the one with z added, or taken out where it is a parent.
    // Without `additions` the places of those not in the family are left alone.
    void toggled(size_t child, std::vector<size_t> parents, double *out, bool additions = true) {
        std::sort(parents.begin(), parents.end());
        sort_rows(child, parents);
        const double r = table.cards[child];
        double q = 1;
        for (size_t p : parents) q *= table.cards[p];
        out[child] = base(q, r);
        if (additions) add_each(child, q, r, out);
        for (size_t p : parents) out[p] = without(p, parents, q / table.cards[p], r);
    }

  private:
    struct Segment { U32 card; size_t begin, end; };
    struct Run { U32 begin, end, child; bool last; };  // rows of one configuration and child's level; last of its configuration

    std::vector<U32> code, order, spare, counts, totals, wide_counts, wide_totals;
    std::vector<size_t> offset, wide, configs;  // configs: index of each configuration's first run
    std::vector<double> sums;
    std::vector<unsigned char> space;
    unsigned char *hot = nullptr;
    std::vector<Segment> segments;
    std::vector<Run> runs;
    size_t width = 0, used = 0, most_levels = 1, largest = 0, largest_config = 0;
    std::map<double, Curve> curves;

    Curve &curve(double alpha, size_t most) {
        Curve &found = curves[alpha];
        if (found.values.size() == 1) found.alpha = alpha, found.scale = score.scale, found.start = alpha > 0 ? std::lgamma(alpha) : 0;
        found.reach(score.bayesian() ? std::min(most, DIRECT) : most);
        return found;
    }

    // Numbers the codes in use 0 .. G-1 in their order; G.
    size_t relabel(size_t codes) {
        std::vector<U32> label(codes, 0);
        for (U32 c : code) label[c] = 1;
        U32 used = 0;
        for (U32 &l : label) l = l ? used++ : 0;
        for (U32 &c : code) c = label[c];
        return used;
    }

    // Stable counting sort of `order` by keys below `most`; the ends of the keys' runs.
    template <class Key>
    std::vector<U32> by(size_t most, Key key) {
        std::vector<U32> at(most + 1, 0);
        for (size_t i = 0; i < n; ++i) ++at[key(i) + 1];
        for (size_t k = 1; k <= most; ++k) at[k] += at[k - 1];
        for (size_t i = 0; i < n; ++i) spare[at[key(order[i])]++] = order[i];
        order.swap(spare);
        return at;
    }

    void sort_rows(size_t child, const std::vector<size_t> &parents) {
        const size_t limit = std::max<size_t>(1024, n), r = table.cards[child];
        size_t Q = 1;
        std::fill(code.begin(), code.end(), 0);
        for (size_t p : parents) {
            if (Q * table.cards[p] > limit) Q = relabel(Q);
            mix(table.column(p), table.cards[p], code.data(), n);
            Q *= table.cards[p];
        }
        if (Q * r > limit) Q = relabel(Q);
        for (size_t i = 0; i < n; ++i) order[i] = U32(i);
        const std::uint16_t *own = table.column(child);
        if (Q * r > 16 * limit) {
            by(r, [&](size_t i) { return own[i]; });
            by(Q, [&](size_t i) { return code[i]; });
        } else {
            by(Q * r, [&](size_t i) { return code[i] * U32(r) + own[i]; });
        }
        find_runs(own);
    }

    void find_runs(const std::uint16_t *own) {
        runs.clear(), configs.clear();
        largest = largest_config = 0;
        for (size_t begin = 0, first = 0, end; begin < n; begin = end) {
            const U32 config = code[order[begin]], level = own[order[begin]];
            for (end = begin + 1; end < n && code[order[end]] == config && own[order[end]] == level;) ++end;
            if (runs.empty() || runs.back().last) configs.push_back(runs.size()), first = begin;
            const bool last = end == n || code[order[end]] != config;
            runs.push_back({U32(begin), U32(end), level, last});
            largest = std::max(largest, end - begin), largest_config = std::max(largest_config, end - first);
        }
        configs.push_back(runs.size());
    }

    double base(double q, double r) {
        const Curve &cell = curve(score.cell(q, r), largest), &config = curve(score.config(q, r), largest_config);
        double total = 0;
        U32 rows = 0;
        for (const Run &run : runs) {
            rows += run.end - run.begin;
            total += cell(run.end - run.begin);
            if (run.last) total -= config(rows), rows = 0;
        }
        return total - score.penalty(q, r, double(n));
    }

    // Log-gammas or k log k of packed counts, added to the sums.
    void spread_out(double q, double r, const U32 *from, bool cells) {
        if (!score.bayesian()) return add_curve(curve(0, largest_config).values.data(), from, used, cells ? 1 : -1, sums.data());
        for (const Segment &s : segments) {
            const double Q = q * s.card;
            const Curve &f = cells ? curve(score.cell(Q, r), largest) : curve(score.config(Q, r), largest_config);
            if ((cells ? largest : largest_config) < f.values.size())
                add_curve(f.values.data(), from + s.begin, s.end - s.begin, cells ? 1 : -1, &sums[s.begin]);
            else
                for (size_t w = s.begin; w < s.end; ++w) sums[w] += cells ? f(from[w]) : -f(from[w]);
        }
    }

    void add_each(size_t child, double q, double r, double *out) {
        std::fill(sums.begin(), sums.end(), 0.0);
        bool first = true;
        for (const Run &run : runs) {
            add_rows(hot, width, order.data() + run.begin, run.end - run.begin, counts.data());
            spread_out(q, r, counts.data(), true);
            if (first) std::copy(counts.begin(), counts.end(), totals.begin());
            else add_counts(counts.data(), used, totals.data());
            if (run.last) spread_out(q, r, totals.data(), false);
            first = run.last;
        }
        for (size_t z = 0; z < V; ++z) {
            if (z == child || table.cards[z] > NARROW) continue;
            double total = 0;
            for (U32 level = 0; level < table.cards[z]; ++level) total += sums[offset[z] + level];
            out[z] = total - score.penalty(q * table.cards[z], r, double(n));
        }
        for (size_t z : wide)
            if (z != child) out[z] = add_wide(z, q * table.cards[z], r);
    }

    // The same for a column of many levels: only cells that hold rows are visited.
    double add_wide(size_t z, double q, double r) {
        const std::uint16_t *column = table.column(z);
        const Curve &cell = curve(score.cell(q, r), largest), &config = curve(score.config(q, r), largest_config);
        double total = 0;
        size_t first = 0;
        auto take = [&](std::vector<U32> &cells, size_t begin, size_t end, const Curve &f) {
            double found = 0;
            for (size_t i = begin; i < end; ++i) {
                U32 &cell = cells[column[order[i]]];
                found += f(cell), cell = 0;
            }
            return found;
        };
        for (const Run &run : runs) {
            for (size_t i = run.begin; i < run.end; ++i) ++wide_counts[column[order[i]]], ++wide_totals[column[order[i]]];
            total += take(wide_counts, run.begin, run.end, cell);
            if (run.last) total -= take(wide_totals, first, run.end, config), first = run.end;
        }
        return total - score.penalty(q, r, double(n));
    }

    // The score without one of the parents: configurations that differ in it alone are merged.
    double without(size_t gone, const std::vector<size_t> &parents, double q, double r) {
        const size_t G = configs.size() - 1;
        std::vector<std::uint64_t> key(G, 0), seen;
        double bound = 1;
        for (size_t p : parents) {
            if (p == gone) continue;
            if ((bound *= table.cards[p]) > 1e15) {
                seen = key;
                std::sort(seen.begin(), seen.end());
                seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
                for (auto &k : key) k = std::uint64_t(std::lower_bound(seen.begin(), seen.end(), k) - seen.begin());
                bound = double(seen.size()) * table.cards[p];
            }
            for (size_t g = 0; g < G; ++g) key[g] = key[g] * table.cards[p] + table.column(p)[order[runs[configs[g]].begin]];
        }
        std::vector<size_t> sorted(G);
        for (size_t g = 0; g < G; ++g) sorted[g] = g;
        std::stable_sort(sorted.begin(), sorted.end(), [&](size_t a, size_t b) { return key[a] < key[b]; });
        const Curve &cell = curve(score.cell(q, r), n), &config = curve(score.config(q, r), n);
        std::vector<U32> merged(size_t(r), 0);
        double total = 0;
        for (size_t i = 0; i < G;) {
            const std::uint64_t own = key[sorted[i]];
            U32 rows = 0;
            for (; i < G && key[sorted[i]] == own; ++i)
                for (size_t k = configs[sorted[i]]; k < configs[sorted[i] + 1]; ++k) {
                    merged[runs[k].child] += runs[k].end - runs[k].begin;
                    rows += runs[k].end - runs[k].begin;
                }
            total -= config(rows);
            for (U32 &count : merged) total += cell(count), count = 0;
        }
        return total - score.penalty(q, r, double(n));
    }
};

}  // namespace
