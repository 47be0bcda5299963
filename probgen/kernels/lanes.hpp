// The inner loops, over vectors of LANES doubles. native.cpp includes this file once for each instruction set, each time in
// a namespace of its own; V is a vector of LANES doubles, I one of 64-bit integers (plain numbers where LANES is 1).
// Jobs run side by side, one a lane: a table of S states is S vectors.

struct Table {
    std::vector<double> space;
    double *at;
    explicit Table(size_t vectors) : space(vectors * LANES + 8) {
        auto raw = reinterpret_cast<std::uintptr_t>(space.data());
        at = reinterpret_cast<double *>((raw + 63) & ~std::uintptr_t(63));
    }
    V &operator[](size_t i) { return reinterpret_cast<V *>(at)[i]; }
    void swap(Table &other) { space.swap(other.space); std::swap(at, other.at); }
};

static inline V all(double x) {
    V v;
    for (int l = 0; l < LANES; ++l) reinterpret_cast<double *>(&v)[l] = x;
    return v;
}
static inline double &lane(V &v, int l) { return reinterpret_cast<double *>(&v)[l]; }
static inline V larger(V a, V b) { return a > b ? a : b; }

// exp of x <= 0 to one unit in the last place; below -708 it is 0, so that no denormal arises.
// Cody and Waite's reduction to |r| <= log(2) / 2, then Taylor's polynomial of degree 13.
static inline V exp_negative(V x) {
    V bounded = larger(x, all(-708.0));
    V k = bounded * all(1.4426950408889634074) + all(6755399441055744.0);
    I n;
    std::memcpy(&n, &k, sizeof k);
    k = k - all(6755399441055744.0);
    V r = bounded - k * all(6.93145751953125e-1) - k * all(1.42860682030941723212e-6);
    const double c[] = {2.0876756987868099e-09, 2.505210838544172e-08,  2.7557319223985893e-07, 2.7557319223985888e-06,
                        2.4801587301587302e-05, 1.9841269841269841e-04, 1.3888888888888889e-03, 8.3333333333333332e-03,
                        4.1666666666666664e-02, 1.6666666666666666e-01, 0.5,                    1.0,
                        1.0};
    V p = all(1.6059043836821613e-10);
    for (double each : c) p = p * r + all(each);
    I raw;
    std::memcpy(&raw, &p, sizeof p);
    raw = raw + (n << 52);
    std::memcpy(&p, &raw, sizeof p);
    return x < all(-708.0) ? all(0.0) : p;
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
    static V with(V best, V a, double m) { V x = a + m; return x > best ? x : best; }
};

template <class Kind, int BLOCK>
static inline void columns(Table &in, const double *matrix, size_t S, size_t j, Table &out) {
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
static inline void product(Table &in, const double *matrix, size_t S, Table &out) {
    size_t j = 0;
    for (; j + 8 <= S; j += 8) columns<Kind, 8>(in, matrix, S, j, out);
    if (j + 4 <= S) { columns<Kind, 4>(in, matrix, S, j, out); j += 4; }
    if (j + 2 <= S) { columns<Kind, 2>(in, matrix, S, j, out); j += 2; }
    if (j < S) columns<Kind, 1>(in, matrix, S, j, out);
}

static inline void gather(const double *table, const size_t *at, size_t S, Table &out) {
    for (int l = 0; l < LANES; ++l) {
        const double *row = table + at[l] * S;
        for (size_t s = 0; s < S; ++s) out.at[s * LANES + l] = row[s];
    }
}

static inline void scatter(Table &in, const size_t *at, const bool *own, size_t S, double *table) {
    for (int l = 0; l < LANES; ++l) {
        if (!own[l]) continue;
        double *row = table + at[l] * S;
        for (size_t s = 0; s < S; ++s) row[s] = in.at[s * LANES + l];
    }
}

// Weights exp(potential - row maximum), and the maxima (0 where a row is all -inf).
static inline V weigh(const double *potentials, const size_t *at, size_t S, Table &out) {
    gather(potentials, at, S, out);
    V top = out[0];
    for (size_t s = 1; s < S; ++s) top = larger(top, out[s]);
    top = top < all(-1.7976931348623157e308) ? all(0.0) : top;
    for (size_t s = 0; s < S; ++s) out[s] = exp_negative(out[s] - top);
    return top;
}

// Which lanes lose a possible state's share to underflow.
static inline V losing(Table &before, Table &after, const double *potentials, const size_t *at, size_t S, V lost) {
    for (size_t s = 0; s < S; ++s) {
        V possible;
        for (int l = 0; l < LANES; ++l) lane(possible, l) = potentials[at[l] * S + s] > -INFINITY ? 1.0 : 0.0;
        V bad = after[s] < all(1e-280) ? possible : all(0.0);
        lost = larger(lost, before[s] > all(0.0) ? bad : all(0.0));
    }
    return lost;
}

static void forward(const Problem &p, const Job *jobs, int count) {
    const size_t S = p.S;
    Table state(S), next(S), weights(S);
    V tops = all(0.0), lost = all(0.0);
    Product scale;
    Job mine[LANES];
    long long longest = 0;
    for (int l = 0; l < LANES; ++l) {
        mine[l] = jobs[l < count ? l : 0];
        longest = std::max<long long>(longest, mine[l].end - mine[l].begin + mine[l].warm);
        for (size_t s = 0; s < S; ++s)
            state.at[s * LANES + l] = mine[l].warm ? 1.0 / double(S) : p.first[mine[l].sequence * p.first_stride + s];
    }
    for (long long t = 0; t < longest; ++t) {
        size_t at[LANES];
        bool own[LANES], edge = false;
        for (int l = 0; l < LANES; ++l) {
            long long place = mine[l].begin - mine[l].warm + t;
            own[l] = l < count && place >= mine[l].begin && place < mine[l].end;
            edge = edge || place <= mine[l].begin || place >= mine[l].end - 1;
            at[l] = size_t(std::min(place, mine[l].end - 1));
        }
        if (t) { product<Sum>(state, p.moves, S, next); state.swap(next); }
        if (edge)
            for (int l = 0; l < count; ++l)
                if (own[l] && (long long)at[l] == mine[l].begin) {
                    scale.restart(l);
                    lane(tops, l) = 0.0;
                    if (mine[l].entering) for (size_t s = 0; s < S; ++s) mine[l].entering[s] = state.at[s * LANES + l];
                }
        V top = weigh(p.potentials, at, S, weights);
        V sum = all(0.0);
        for (size_t s = 0; s < S; ++s) { next[s] = state[s] * weights[s]; sum += next[s]; }
        if (p.careful) lost = losing(state, next, p.potentials, at, S, lost);
        V safe = sum > all(0.0) ? sum : all(1.0);
        V inverse = all(1.0) / safe;
        for (size_t s = 0; s < S; ++s) state[s] = next[s] * inverse;
        scale.times(safe);
        tops += top;
        if (p.sums)
            for (int l = 0; l < count; ++l)
                if (own[l]) { p.sums[at[l]] = lane(sum, l); p.tops[at[l]] = lane(top, l); }
        if (p.states) scatter(state, at, own, S, p.states);
        for (int l = 0; l < count; ++l) {
            if (own[l] && !(lane(sum, l) > 0) && !*mine[l].impossible) *mine[l].impossible = 1 + at[l];
            if (edge && own[l] && (long long)at[l] == mine[l].end - 1) {
                *mine[l].nats = scale.log(l) + lane(tops, l);
                *mine[l].flag |= lane(lost, l) > 0;
                if (mine[l].leaving) for (size_t s = 0; s < S; ++s) mine[l].leaving[s] = state.at[s * LANES + l];
            }
        }
    }
}

// Messages scaled so that alpha . beta = 1: alpha beta are then the marginals, and alpha_{t-1} x (w_t beta_t / norm), times
// the moves, the expected moves. Reads the filtered states; writes marginals, and the second factor.
static void backward(const Problem &p, const Job *jobs, int count) {
    const size_t S = p.S;
    Table message(S), next(S), weights(S), state(S);
    V lost = all(0.0);
    Job mine[LANES];
    long long longest = 0;
    for (int l = 0; l < LANES; ++l) {
        mine[l] = jobs[l < count ? l : 0];
        longest = std::max<long long>(longest, mine[l].end - mine[l].begin + mine[l].warm);
    }
    for (size_t s = 0; s < S; ++s) message[s] = all(1.0);
    for (long long t = 0; t < longest; ++t) {
        size_t at[LANES], before[LANES];
        bool own[LANES], edge = false;
        for (int l = 0; l < LANES; ++l) {
            long long place = mine[l].end + mine[l].warm - 1 - t;
            own[l] = l < count && place >= mine[l].begin && place < mine[l].end;
            edge = edge || place >= mine[l].end - 1 || place <= mine[l].begin;
            at[l] = size_t(std::max(place, mine[l].begin));
            before[l] = at[l] - (at[l] > size_t(mine[l].start));
        }
        if (edge)
            for (int l = 0; l < count; ++l)
                if (own[l] && (long long)at[l] == mine[l].end - 1 && mine[l].entering)
                    for (size_t s = 0; s < S; ++s) mine[l].entering[s] = message.at[s * LANES + l];
        gather(p.states, at, S, state);
        weigh(p.potentials, at, S, weights);
        for (size_t s = 0; s < S; ++s) state[s] *= message[s];
        scatter(state, at, own, S, p.marginals);
        for (size_t s = 0; s < S; ++s) weights[s] *= message[s];
        if (p.careful) lost = losing(message, weights, p.potentials, at, S, lost);
        product<Sum>(weights, p.moves_back, S, next);
        gather(p.states, before, S, state);
        V norm = all(0.0);
        for (size_t s = 0; s < S; ++s) norm += state[s] * next[s];
        V inverse = all(1.0) / (norm > all(0.0) ? norm : all(1.0));
        for (size_t s = 0; s < S; ++s) { message[s] = next[s] * inverse; weights[s] *= inverse; }
        scatter(weights, at, own, S, p.factor);
        if (edge)
            for (int l = 0; l < count; ++l)
                if (own[l] && (long long)at[l] == mine[l].begin) {
                    *mine[l].flag |= lane(lost, l) > 0;
                    if (mine[l].leaving) for (size_t s = 0; s < S; ++s) mine[l].leaving[s] = message.at[s * LANES + l];
                }
    }
}

// Viterbi's values, row by row into states; in logarithms.
static void values(const Problem &p, const Job *jobs, int count) {
    const size_t S = p.S;
    Table state(S), next(S), potentials(S);
    Job mine[LANES];
    long long longest = 0;
    for (int l = 0; l < LANES; ++l) {
        mine[l] = jobs[l < count ? l : 0];
        longest = std::max<long long>(longest, mine[l].end - mine[l].begin + mine[l].warm);
        for (size_t s = 0; s < S; ++s)
            state.at[s * LANES + l] = mine[l].warm ? 0.0 : p.first[mine[l].sequence * p.first_stride + s];
    }
    for (long long t = 0; t < longest; ++t) {
        size_t at[LANES];
        bool own[LANES];
        for (int l = 0; l < LANES; ++l) {
            long long place = mine[l].begin - mine[l].warm + t;
            own[l] = l < count && place >= mine[l].begin && place < mine[l].end;
            at[l] = size_t(std::min(place, mine[l].end - 1));
        }
        if (t) { product<Best>(state, p.moves, S, next); state.swap(next); }
        for (int l = 0; l < count; ++l)
            if (own[l] && (long long)at[l] == mine[l].begin && mine[l].entering)
                for (size_t s = 0; s < S; ++s) mine[l].entering[s] = state.at[s * LANES + l];
        gather(p.potentials, at, S, potentials);
        for (size_t s = 0; s < S; ++s) state[s] += potentials[s];
        scatter(state, at, own, S, p.states);
    }
}

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
