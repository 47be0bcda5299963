// The inner loops, over vectors of LANES doubles. native.cpp includes this file once for each instruction set, each time in
// a namespace of its own; V is a vector of LANES doubles, I one of 64-bit integers (plain numbers where LANES is 1).
// Jobs run side by side, one a lane: a table of S states is S vectors.

struct Table {
    std::vector<double> space;
    V *at = nullptr;
    explicit Table(size_t vectors = 0) { room(vectors); }
    void room(size_t vectors) {
        space.resize(vectors * LANES + 8);
        auto raw = reinterpret_cast<std::uintptr_t>(space.data());
        at = reinterpret_cast<V *>((raw + 63) & ~std::uintptr_t(63));
    }
    void swap(Table &other) { space.swap(other.space); std::swap(at, other.at); }
};

static inline V all(double x) {
    V v;
    for (int l = 0; l < LANES; ++l) reinterpret_cast<double *>(&v)[l] = x;
    return v;
}
static inline double &lane(V &v, int l) { return reinterpret_cast<double *>(&v)[l]; }
static inline double *numbers(V *v) { return reinterpret_cast<double *>(v); }

#ifndef PROBGEN_SCALES
static inline V rounded(V y) { return y + all(6755399441055744.0) - all(6755399441055744.0); }
static inline V scaled(V p, V k) {  // p 2^k for a whole k
    U raw, n;
    k = k + all(6755399441055744.0);
    std::memcpy(&raw, &p, sizeof p);
    std::memcpy(&n, &k, sizeof k);
    raw = raw + (n << 52);
    std::memcpy(&p, &raw, sizeof p);
    return p;
}
#endif

// exp of x <= 0: 2^y = 2^k 2^r with k whole and |r| <= 1/2, where 2^r is a polynomial of degree 12 (2e-17 relative, by
// interpolation at Chebyshev's nodes). Rounding y costs 1e-16 |x|. Below -708 it is 0, so that no denormal arises.
static inline V exp_negative(V x) {
    V y = x * all(1.4426950408889634074), k = rounded(y), r = y - k;
    const double c[] = {4.4558179083360645e-10, 7.0548973041554995e-09, 1.0178057087733941e-07, 1.3215486808705563e-06,
                        1.5252733841556773e-05, 0.00015403530393370734, 0.001333355814640647,   0.00961812910762848,
                        0.055504108664821625,   0.24022650695910072,    0.6931471805599453,     1.0};
    V p = all(2.5729324177362305e-11);
    for (double each : c) p = p * r + all(each);
    return x < all(-708.0) ? all(0.0) : scaled(p, k);
}

// A running product of positive numbers, its exponent kept apart.
struct Product {
    V mantissa, exponent;
    Product() { mantissa = all(1.0), exponent = all(0.0); }  // spelled out: an implied one is built for no set
    void times(V c) {
        V m = mantissa * c;
        I raw;
        std::memcpy(&raw, &m, sizeof m);
        I biased = (raw >> 52) + 0x4330000000000000LL;  // an integer in the low bits of 2^52
        V e;
        std::memcpy(&e, &biased, sizeof e);
        exponent = exponent + (e - all(4503599627370496.0 + 1023.0));
        raw = (raw & 0x000fffffffffffffLL) | 0x3ff0000000000000LL;
        std::memcpy(&mantissa, &raw, sizeof m);
    }
    void restart(int l) { lane(mantissa, l) = 1.0; lane(exponent, l) = 0.0; }
    double log(int l) { return std::log(lane(mantissa, l)) + lane(exponent, l) * 0.69314718055994530942; }
};

// out[j] = sum_i in[i] matrix[i][j], or max_i in[i] + matrix[i][j]; the matrix (S, S) row by row.
struct Sum {
    static V none() { return all(0.0); }
    static V with(V total, V a, double m) { return total + a * m; }
};
struct Best {
    static V none() { return all(-INFINITY); }
    static V with(V best, V a, double m) { return larger(a + m, best); }
};

template <class Kind, int BLOCK>
static inline void columns(const V *in, const double *matrix, size_t S, size_t j, V *out) {
    V total[BLOCK];
    for (int b = 0; b < BLOCK; ++b) total[b] = Kind::none();
    const double *row = matrix + j;
    for (size_t i = 0; i < S; ++i, row += S) {
        V a = in[i];
        for (int b = 0; b < BLOCK; ++b) total[b] = Kind::with(total[b], a, row[b]);
    }
    for (int b = 0; b < BLOCK; ++b) out[j + b] = total[b];
}

template <class Kind>
static inline void product(const V *in, const double *matrix, size_t S, V *out) {
    size_t j = 0;
    if (LANES == 8)
        for (; j + 16 <= S; j += 16) columns<Kind, 16>(in, matrix, S, j, out);
    for (; j + 8 <= S; j += 8) columns<Kind, 8>(in, matrix, S, j, out);
    if (j + 4 <= S) { columns<Kind, 4>(in, matrix, S, j, out); j += 4; }
    if (j + 2 <= S) { columns<Kind, 2>(in, matrix, S, j, out); j += 2; }
    if (j < S) columns<Kind, 1>(in, matrix, S, j, out);
}

// counts[i][j] += sum over steps of before[i] after[j]; consecutive steps stand `stride` vectors apart.
template <int BI, int BJ>
static inline void count_block(const V *before, const V *after, size_t stride, size_t steps, size_t S, V *counts) {
    V total[BI][BJ];
    for (int i = 0; i < BI; ++i)
        for (int j = 0; j < BJ; ++j) total[i][j] = counts[size_t(i) * S + j];
    for (size_t t = 0; t < steps; ++t, before += stride, after += stride) {
        V a[BI];
        for (int i = 0; i < BI; ++i) a[i] = before[i];
        for (int j = 0; j < BJ; ++j) {
            V b = after[j];
            for (int i = 0; i < BI; ++i) total[i][j] += a[i] * b;
        }
    }
    for (int i = 0; i < BI; ++i)
        for (int j = 0; j < BJ; ++j) counts[size_t(i) * S + j] = total[i][j];
}

static void count(const V *before, const V *after, size_t stride, size_t steps, size_t S, V *counts) {
    constexpr int WIDE = LANES == 8 ? 4 : 2;
    size_t i = 0;
    for (; i + WIDE <= S; i += WIDE) {
        size_t j = 0;
        for (; j + 4 <= S; j += 4) count_block<WIDE, 4>(before + i, after + j, stride, steps, S, counts + i * S + j);
        for (; j < S; ++j) count_block<WIDE, 1>(before + i, after + j, stride, steps, S, counts + i * S + j);
    }
    for (; i < S; ++i) {
        size_t j = 0;
        for (; j + 4 <= S; j += 4) count_block<1, 4>(before + i, after + j, stride, steps, S, counts + i * S + j);
        for (; j < S; ++j) count_block<1, 1>(before + i, after + j, stride, steps, S, counts + i * S + j);
    }
}

static inline void gather(const double *table, const size_t *at, size_t S, V *out) {
    size_t places[LANES];
    for (int l = 0; l < LANES; ++l) places[l] = at[l] * S;
    for (size_t s = 0; s < S; ++s) out[s] = pick(table + s, places);
}

static inline void scatter(const V *in, const size_t *at, const bool *own, size_t S, double *table) {
    const double *from = reinterpret_cast<const double *>(in);
    for (int l = 0; l < LANES; ++l) {
        if (!own[l]) continue;
        double *row = table + at[l] * S;
        for (size_t s = 0; s < S; ++s) row[s] = from[s * LANES + l];
    }
}

// log p(x | state) of the rows in all lanes: looked up, or those of normals with independent cells.
static inline void potentials_of(const Problem &p, size_t S, const size_t *at, V *out) {
    if (p.potentials) { gather(p.potentials, at, S, out); return; }
    const size_t D = p.D;
    const double *loc = p.loc, *inverse = p.inverse, *constant = p.constant;
    V x[8];
    size_t places[LANES];
    for (int l = 0; l < LANES; ++l) places[l] = at[l] * D;
    for (size_t first = 0; first < D; first += 8) {
        const size_t wide = std::min<size_t>(8, D - first);
        for (size_t d = 0; d < wide; ++d) x[d] = pick(p.x + first + d, places);
        for (size_t s = 0; s < S; ++s) {
            V total = first ? out[s] : all(0.0);
            const size_t place = s * D + first;
            if (p.gaps)
                for (size_t d = 0; d < wide; ++d) {
                    V z = (x[d] - loc[place + d]) * inverse[place + d];
                    total += x[d] == x[d] ? constant[place + d] - z * z : all(0.0);
                }
            else
                for (size_t d = 0; d < wide; ++d) {
                    V z = (x[d] - loc[place + d]) * inverse[place + d];
                    total += constant[place + d] - z * z;
                }
            out[s] = total;
        }
    }
}

// Weights exp(potential - row maximum), and the maxima (0 where a row is all -inf).
static inline V weigh(const Problem &p, size_t S, const size_t *at, V *out) {
    potentials_of(p, S, at, out);
    V top = out[0];
    for (size_t s = 1; s < S; ++s) top = larger(top, out[s]);
    top = top < all(-1.7976931348623157e308) ? all(0.0) : top;
    for (size_t s = 0; s < S; ++s) out[s] = exp_negative(out[s] - top);
    return top;
}

static inline double dot(const double *a, const double *b, size_t S) {
    V sums = all(0.0), left, right;
    size_t s = 0;
    for (; s + LANES <= S; s += LANES) {
        std::memcpy(&left, a + s, sizeof left);
        std::memcpy(&right, b + s, sizeof right);
        sums += left * right;
    }
    double total = 0;
    for (int l = 0; l < LANES; ++l) total += lane(sums, l);
    for (; s < S; ++s) total += a[s] * b[s];
    return total;
}

// A group of jobs, one a lane (the first again in lanes without one), and where each is at step t from its warm-up on.
// N is the number of states where it is known to the compiler, else 0.
template <int N>
struct Group {
    const Problem &p;
    Job job[LANES];
    int count;
    long long longest = 0, smooth_from = 0, smooth_to = 1LL << 60;  // steps at which nothing begins or ends
    Table state, next, weights;
    size_t base[LANES];      // row of step 0, its warm-up included
    bool recording = true;  // false where a block is run a second time
    V tops, lost;
    Product scale;

    Group(const Problem &problem, const Job *jobs, int n) : p(problem), count(n), state(p.S), next(p.S), weights(p.S) {
        tops = lost = all(0.0);
        for (int l = 0; l < LANES; ++l) {
            job[l] = jobs[l < n ? l : 0];
            base[l] = size_t(job[l].begin - job[l].warm);
            long long own = job[l].end - job[l].begin;
            longest = std::max(longest, own + job[l].warm);
            smooth_from = std::max(smooth_from, job[l].warm + 1);
            smooth_to = std::min(smooth_to, own + job[l].warm - 1);
        }
        if (n < LANES) smooth_to = 0;
    }

    // Rows of a step, which lanes are at one of their own steps, and whether all are well inside.
    bool place(long long t, size_t *at, bool *own) const {
        if (t >= smooth_from && t < smooth_to) {
            for (int l = 0; l < LANES; ++l) at[l] = base[l] + size_t(t), own[l] = true;
            return true;
        }
        for (int l = 0; l < LANES; ++l) {
            long long row = (long long)base[l] + t;
            own[l] = l < count && row >= job[l].begin && row < job[l].end;
            at[l] = size_t(std::min(row, job[l].end - 1));
        }
        return false;
    }

    void first(double guess) {
        const size_t S = N ? size_t(N) : p.S;
        for (size_t s = 0; s < S; ++s)
            for (int l = 0; l < LANES; ++l)
                lane(state.at[s], l) = job[l].warm ? guess : p.first[job[l].sequence * p.first_stride + s];
    }

    void note(int l, double *where, const V *table) const {
        const size_t S = N ? size_t(N) : p.S;
        if (!where) return;
        for (size_t s = 0; s < S; ++s) where[s] = reinterpret_cast<const double *>(table)[s * LANES + l];
    }

    // One step forward. Filtered probabilities are left in state, and with the weights in tile where one is given.
    void step(long long t, V *tile) {
        const size_t S = N ? size_t(N) : p.S;
        size_t at[LANES];
        bool own[LANES];
        bool smooth = place(t, at, own);
        if (t) { product<Sum>(state.at, p.moves, S, next.at); state.swap(next); }
        if (!smooth)
            for (int l = 0; l < count; ++l)
                if (own[l] && (long long)at[l] == job[l].begin) {
                    scale.restart(l);
                    lane(tops, l) = 0.0;
                    note(l, job[l].entering, state.at);
                }
        V *const from = state.at, *const mixed = next.at, *const w = tile ? tile + S : weights.at;
        V *const to = tile ? tile : from;
        V top = weigh(p, S, at, w);
        V sum = all(0.0);
        for (size_t s = 0; s < S; ++s) {
            V each = from[s] * w[s];
            mixed[s] = each;
            sum += each;
        }
        V safe = sum > all(0.0) ? sum : all(1.0);
        V inverse = all(1.0) / safe;
        for (size_t s = 0; s < S; ++s) {
            V each = mixed[s] * inverse;
            to[s] = each;
            from[s] = each;
        }
        scale.times(safe);
        tops += top;
        if (p.sums)
            for (int l = 0; l < count; ++l)
                if (own[l]) { p.sums[at[l]] = lane(sum, l); p.tops[at[l]] = lane(top, l); }
        if (p.states) scatter(to, at, own, S, p.states);
        if (!recording) return;
        if (any(sum <= all(0.0)))
            for (int l = 0; l < count; ++l)
                if (own[l] && !(lane(sum, l) > 0) && !*job[l].impossible) *job[l].impossible = 1 + (long long)at[l];
        if (smooth) return;
        for (int l = 0; l < count; ++l)
            if (own[l] && (long long)at[l] == job[l].end - 1) {
                *job[l].nats = scale.log(l) + lane(tops, l);
                *job[l].flag |= lane(lost, l) > 0;
                note(l, job[l].leaving, to);
            }
        for (int l = 0; l < count; ++l)  // no move has spread the shares of a first step
            if (own[l] && (long long)at[l] == job[l].start) *job[l].flag |= !(lane(sum, l) >= 1e-100);
    }
};

template <int N>
static void forward_of(const Problem &p, const Job *jobs, int count, Room &) {
    Group<N> g(p, jobs, count);
    g.first(1.0 / double(p.S));
    for (long long t = 0; t < g.longest; ++t) g.step(t, nullptr);
}

// Both directions. Messages beta are scaled so that alpha . beta = 1: alpha beta are then the marginals, and
// alpha_{t-1} x (w_t beta_t / norm), times the moves, the expected moves. Long jobs go block by block: a first pass keeps
// only what each block begins with.
template <int N>
struct Smoother {
    Group<N> g;
    const size_t B;  // steps of a block
    Room &room;
    std::vector<Table> begins;
    Table message;
    V factors;

    Smoother(const Problem &p, const Job *jobs, int count, Room &r)
        : g(p, jobs, count), B(p.block), room(r), message(p.S) {
        for (int l = 0; l < LANES; ++l)
            lane(factors, l) = l < count ? (p.sequence_weight ? p.sequence_weight[g.job[l].sequence] : 1.0) : 0.0;
    }

    // Vectors of a step in the tile: filtered probabilities, weights, and where moments are wanted marginals and x.
    size_t stride() const { return (room.moments ? 3 : 2) * (N ? size_t(N) : g.p.S) + (room.moments ? g.p.D : 0); }

    // A step of the block; there is one before its first.
    V *tile(long long inside) { return reinterpret_cast<V *>(room.tiles) + size_t(inside + 1) * stride(); }

    void run() {
        const size_t S = N ? size_t(N) : g.p.S;
        const long long steps = g.longest, blocks = (steps + (long long)B - 1) / (long long)B;
        g.first(1.0 / double(S));
        for (long long b = 0; b + 1 < blocks; ++b) {
            keep();
            for (long long t = b * B; t < (b + 1) * (long long)B; ++t) g.step(t, nullptr);
        }
        keep();
        for (size_t s = 0; s < S; ++s) message.at[s] = all(1.0);
        for (long long b = blocks - 1; b >= 0; --b) {
            const long long from = b * B, to = std::min<long long>(steps, from + B);
            std::memcpy(tile(-1), begins[b].at, S * sizeof(V));
            std::memcpy(g.state.at, begins[b].at, S * sizeof(V));
            if (b + 1 < blocks) begins.pop_back();
            for (long long t = from; t < to; ++t) g.step(t, tile(t - from));
            g.recording = false;
            back(from, to);
        }
    }

    void keep() {
        const size_t S = N ? size_t(N) : g.p.S;
        begins.emplace_back(S);
        std::memcpy(begins.back().at, g.state.at, S * sizeof(V));
    }

    // Each lane's job ends at its own forward step: there its message begins anew, after its warm-up on the right.
    void back(long long from, long long to) {
        const size_t S = N ? size_t(N) : g.p.S;
        constexpr long long CHUNK = 32;
        for (long long high = to; high > from; high -= CHUNK) {
            const long long low = std::max(from, high - CHUNK);
            for (long long t = high - 1; t >= low; --t) step(t, tile(t - from));
            count(tile(low - 1 - from), tile(low - from) + S, stride(), size_t(high - low), S, room_counts());
            if (room.moments) moments(tile(low - from) + 2 * S, size_t(high - low));
        }
    }

    V *room_counts() { return reinterpret_cast<V *>(room.counts); }
    V *room_moments() { return reinterpret_cast<V *>(room.moments); }

    // What comes in from beyond a job's end: 1 at the end of a sequence, else a guess run back from `warm` steps further on.
    void enter(int l) {
        const size_t S = N ? size_t(N) : g.p.S;
        const Job &j = g.job[l];
        const long long warm = std::min<long long>(j.right, j.stop - j.end);
        std::vector<double> m(S, 1.0), w(S), n(S);
        for (long long row = j.end + warm - 1; row >= j.end; --row) {
            size_t at[LANES];
            for (int k = 0; k < LANES; ++k) at[k] = size_t(row);
            weigh(g.p, S, at, g.weights.at);
            double total = 0;
            for (size_t s = 0; s < S; ++s) w[s] = m[s] * lane(g.weights.at[s], 0);
            for (size_t i = 0; i < S; ++i) total += n[i] = dot(g.p.moves + i * S, w.data(), S);
            for (size_t i = 0; i < S; ++i) m[i] = n[i] / (total > 0 ? total : 1.0);
        }
        for (size_t s = 0; s < S; ++s) {
            lane(message.at[s], l) = m[s];
            if (j.entering_back) j.entering_back[s] = m[s];
        }
    }

    void step(long long t, V *tile) {
        const size_t S = N ? size_t(N) : g.p.S;
        const Problem &p = g.p;
        size_t at[LANES];
        bool own[LANES];
        bool smooth = g.place(t, at, own);
        if (!smooth)
            for (int l = 0; l < g.count; ++l)
                if (own[l] && (long long)at[l] == g.job[l].end - 1) { enter(l); rescale(l, tile); }
        V share = factors, moved = factors;
        if (!smooth)
            for (int l = 0; l < LANES; ++l) {
                if (!own[l]) lane(share, l) = lane(moved, l) = 0.0;
                if ((long long)at[l] == g.job[l].start) lane(moved, l) = 0.0;
            }
        V *alpha = tile, *weights = tile + S;
        const V *before = tile - stride();
        V *gamma = room.moments ? tile + 2 * S : g.next.at;
        for (size_t s = 0; s < S; ++s) gamma[s] = alpha[s] * message.at[s] * share;
        if (p.marginals) scatter(gamma, at, own, S, p.marginals);
        if (room.moments) {
            size_t places[LANES];
            for (int l = 0; l < LANES; ++l) places[l] = at[l] * p.D;
            for (size_t d = 0; d < p.D; ++d) gamma[S + d] = pick(p.x + d, places);
        }
        for (int l = 0; l < g.count && !smooth; ++l)
            if (own[l] && (long long)at[l] == g.job[l].start) g.note(l, p.initial + g.job[l].sequence * S, gamma);
        for (size_t s = 0; s < S; ++s) weights[s] *= message.at[s];
        product<Sum>(weights, p.moves_back, S, g.state.at);
        V norm = all(0.0);
        for (size_t s = 0; s < S; ++s) norm += before[s] * g.state.at[s];
        V inverse = all(1.0) / (norm > all(0.0) ? norm : all(1.0)), scaled = inverse * moved;
        for (size_t s = 0; s < S; ++s) { message.at[s] = g.state.at[s] * inverse; weights[s] *= scaled; }
        if (p.careful)  // what can't have been gets no message, else it would overflow
            for (size_t s = 0; s < S; ++s) {
                message.at[s] = before[s] > all(0.0) ? message.at[s] : all(0.0);
                g.lost = larger(message.at[s] <= all(1e250) ? all(0.0) : all(1.0), g.lost);
            }
        if (smooth) return;
        for (int l = 0; l < LANES; ++l) {
            if (!own[l])  // no 0 * inf from lanes that idle
                for (size_t s = 0; s < S; ++s) { lane(message.at[s], l) = 1.0; lane(weights[s], l) = 0.0; }
            else if (l < g.count && (long long)at[l] == g.job[l].begin) {
                g.note(l, g.job[l].leaving_back, message.at);
                *g.job[l].flag |= lane(g.lost, l) > 0;
            }
        }
    }

    void rescale(int l, const V *alpha) {
        const size_t S = N ? size_t(N) : g.p.S;
        double total = 0;
        for (size_t s = 0; s < S; ++s) total += reinterpret_cast<const double *>(alpha)[s * LANES + l] * lane(message.at[s], l);
        for (size_t s = 0; s < S; ++s) lane(message.at[s], l) /= total > 0 ? total : 1.0;
    }

    // Sums over steps of marginals, and of their products with x - loc and its square, over the cells that are seen.
    void moments(const V *tile, size_t steps) {
        const size_t S = N ? size_t(N) : g.p.S;
        const size_t D = g.p.D, wide = stride();
        V *sums = room_moments();
        for (size_t d = 0; d < D; ++d)
            for (size_t s = 0; s < S; ++s) {
                const double loc = g.p.loc[s * D + d];
                V *to = sums + 3 * (d * S + s);
                V n = to[0], first = to[1], second = to[2];
                const V *at = tile;
                for (size_t t = 0; t < steps; ++t, at += wide) {
                    V w = at[s], x = at[S + d];
                    if (g.p.gaps) {
                        w = x == x ? w : all(0.0);
                        x = x == x ? x : all(0.0);
                    }
                    V y = x - loc, wy = w * y;
                    n += w, first += wy, second += wy * y;
                }
                to[0] = n, to[1] = first, to[2] = second;
            }
    }
};

template <int N>
static void smooth_of(const Problem &p, const Job *jobs, int count, Room &room) {
    Smoother<N>(p, jobs, count, room).run();
}

// Viterbi in logarithms: values forward into the tile, from `warm` steps before to `right` steps after a job's own, then back
// from the best last one. What the states are beyond an end is soon the same whatever comes later: the state just behind the
// end is left for the neighbour to be held against.
template <int N>
static void best_of(const Problem &p, const Job *jobs, int count, Room &room) {
    const size_t S = N ? size_t(N) : p.S;
    Group<N> g(p, jobs, count);
    V *tiles = reinterpret_cast<V *>(room.tiles);
    long long steps[LANES], longest = 0;
    for (int l = 0; l < LANES; ++l) {
        const Job &j = g.job[l];
        steps[l] = j.end + j.right - j.begin + j.warm;
        longest = std::max(longest, steps[l]);
    }
    g.first(0.0);
    for (long long t = 0; t < longest; ++t) {
        size_t at[LANES];
        for (int l = 0; l < LANES; ++l) at[l] = g.base[l] + size_t(std::min(t, steps[l] - 1));
        V *value = tiles + size_t(t) * S;
        if (t) product<Best>(value - S, p.moves, S, value);
        else std::memcpy(value, g.state.at, S * sizeof(V));
        for (int l = 0; l < count; ++l)
            if (t == g.job[l].warm) g.note(l, g.job[l].entering, value);
        potentials_of(p, S, at, g.weights.at);
        for (size_t s = 0; s < S; ++s) value[s] += g.weights.at[s];
        for (int l = 0; l < count; ++l)
            if (t == g.job[l].warm + g.job[l].end - g.job[l].begin - 1) g.note(l, g.job[l].leaving, value);
    }
    if (!p.path) return;
    size_t now[LANES] = {0}, into[LANES];
    for (long long t = longest - 1; t >= 0; --t) {
        const V *value = tiles + size_t(t) * S;
        V best = all(-INFINITY), which = all(0.0);
        for (int l = 0; l < LANES; ++l) into[l] = now[l] * S;
        for (size_t s = 0; s < S; ++s) {
            V x = value[s] + pick(p.moves_back + s, into);
            which = x > best ? all(double(s)) : which;
            best = larger(x, best);
        }
        for (int l = 0; l < count; ++l) {
            const Job &j = g.job[l];
            if (t >= steps[l]) continue;
            now[l] = size_t(lane(which, l));
            if (t == steps[l] - 1) {  // nothing is moved into
                const double *from = reinterpret_cast<const double *>(value) + l;
                now[l] = 0;
                for (size_t s = 1; s < S; ++s)
                    if (from[s * LANES] > from[now[l] * LANES]) now[l] = s;
            }
            const long long row = (long long)g.base[l] + t;
            if (row >= j.begin && row < j.end) p.path[row] = (long long)now[l];
            if (row == j.end && j.leaving_back) j.leaving_back[0] = double(now[l]);
        }
    }
}

// Few states are common, and faster where the compiler knows their number.
#define PROBGEN_BY_SIZE(name)                                                              \
    static void name(const Problem &p, const Job *jobs, int count, Room &room) {           \
        switch (p.S) {                                                                     \
            case 2: return name##_of<2>(p, jobs, count, room);                             \
            case 3: return name##_of<3>(p, jobs, count, room);                             \
            case 4: return name##_of<4>(p, jobs, count, room);                             \
            case 8: return name##_of<8>(p, jobs, count, room);                             \
            default: return name##_of<0>(p, jobs, count, room);                            \
        }                                                                                  \
    }
PROBGEN_BY_SIZE(forward)
PROBGEN_BY_SIZE(smooth)
PROBGEN_BY_SIZE(best)
#undef PROBGEN_BY_SIZE

// log N(x; loc, diag scale^2), missing cells integrated out. loc and 1 / scale come as (D, K padded to whole vectors).
static void normal_log_prob(const Cells &c, size_t begin, size_t end) {
    const size_t wide = c.padded / LANES;
    std::vector<double> row(c.padded);
    for (size_t n = begin; n < end; ++n) {
        const double *x = c.x + n * c.D;
        for (size_t k = 0; k < wide; ++k) {
            V total = all(0.0);
            for (size_t d = 0; d < c.D; ++d) {
                if (x[d] != x[d]) continue;
                V loc, inverse, constant;
                std::memcpy(&loc, c.loc + d * c.padded + k * LANES, sizeof loc);
                std::memcpy(&inverse, c.inverse + d * c.padded + k * LANES, sizeof loc);
                std::memcpy(&constant, c.constant + d * c.padded + k * LANES, sizeof loc);
                V z = (all(x[d]) - loc) * inverse;
                total += constant - z * z * 0.5;
            }
            std::memcpy(row.data() + k * LANES, &total, sizeof total);
        }
        std::memcpy(c.out + n * c.K, row.data(), c.K * sizeof(double));
    }
}

// Sums of weights, and of weighted moments about loc, over rows: n, first, second, each (D, K padded).
static void normal_moments(const Cells &c, size_t begin, size_t end, double *sums) {
    const size_t wide = c.padded / LANES, size = c.D * c.padded;
    std::vector<double> row(c.padded);
    for (size_t n = begin; n < end; ++n) {
        const double *x = c.x + n * c.D;
        std::memcpy(row.data(), c.weights + n * c.K, c.K * sizeof(double));
        for (size_t d = 0; d < c.D; ++d) {
            if (x[d] != x[d]) continue;
            for (size_t k = 0; k < wide; ++k) {
                const size_t place = d * c.padded + k * LANES;
                V w, loc, total, first, second;
                std::memcpy(&w, row.data() + k * LANES, sizeof w);
                std::memcpy(&loc, c.loc + place, sizeof w);
                std::memcpy(&total, sums + place, sizeof w);
                std::memcpy(&first, sums + size + place, sizeof w);
                std::memcpy(&second, sums + 2 * size + place, sizeof w);
                V y = all(x[d]) - loc, wy = w * y;
                total += w;
                first += wy;
                second += wy * y;
                std::memcpy(sums + place, &total, sizeof w);
                std::memcpy(sums + size + place, &first, sizeof w);
                std::memcpy(sums + 2 * size + place, &second, sizeof w);
            }
        }
    }
}
