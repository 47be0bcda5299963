// A decoding step and a draw, over vectors of BYTES bytes. decoder.cpp includes this file once for each instruction set, each
// time in a namespace of its own, where Wide<Real> names a vector V of Real (a plain number where there are none) and U, one of
// unsigned integers as wide. Every sum over k runs in the same order whatever rows stand beside it: a row's numbers do not depend on them.

template <class Real> constexpr size_t LANES = sizeof(typename Wide<Real>::V) / sizeof(Real);
constexpr size_t TILE = BYTES == 64 ? 8 : BYTES == 32 ? 3 : 1;  // rows whose sums fit the registers

template <class Real> using V = typename Wide<Real>::V;
template <class Real> static inline V<Real> load(const Real *at) { return *reinterpret_cast<const V<Real> *>(at); }
template <class Real> static inline void save(Real *at, V<Real> x) { *reinterpret_cast<V<Real> *>(at) = x; }
template <class Real> static inline V<Real> all(Real x) { return x - V<Real>{}; }
template <class Real> static inline V<Real> larger(V<Real> a, V<Real> b) { return a > b ? a : b; }

template <class Real> static inline Real total(const Real *x, size_t n) {
    V<Real> sums{};
    size_t i = 0;
    for (; i + LANES<Real> <= n; i += LANES<Real>) sums += load(x + i);
    Real lane[LANES<Real>], sum = 0;
    save<Real>(lane, sums);
    for (Real each : lane) sum += each;
    for (; i < n; ++i) sum += x[i];
    return sum;
}

template <class Real> static inline Real largest(const Real *x, size_t n) {
    V<Real> tops = all<Real>(-INFINITY);
    size_t i = 0;
    for (; i + LANES<Real> <= n; i += LANES<Real>) tops = larger<Real>(load(x + i), tops);
    Real lane[LANES<Real>], top = -INFINITY;
    save<Real>(lane, tops);
    for (Real each : lane) top = std::max(top, each);
    for (; i < n; ++i) top = std::max(top, x[i]);
    return top;
}

// exp of x <= 0 by 2^k exp r with k whole and |r| <= log(2) / 2, exp r by its series: to an ulp or two. Where it would be
// denormal it is 0.
template <class Real> static inline V<Real> exp_negative(V<Real> x) {
    constexpr bool single = sizeof(Real) == 4;
    constexpr int bits = single ? 23 : 52, terms = single ? 7 : 13;
    constexpr Real magic = single ? Real(12582912.0) : Real(6755399441055744.0);
    constexpr Real high = single ? Real(0.693145751953125) : Real(0x1.62e42fefa38p-1);  // of log 2; k * high is exact
    constexpr Real low = single ? Real(1.42860682030941723e-06) : Real(0x1.ef35793c7673p-45);
    const V<Real> shifted = x * Real(1.4426950408889634074) + magic, k = shifted - magic, r = (x - k * high) - k * low;
    V<Real> p = all<Real>(Real(1.0 / 5040)), none{};
    if (!single) {
        constexpr double more[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040};
        p = all<Real>(Real(1.0 / 6227020800.0));
        for (double each : more) p = p * r + Real(each);
    }
    constexpr double series[] = {1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
    static_assert(terms == (single ? 0 : 6) + 7, "the degree of the series");
    for (double each : series) p = p * r + Real(each);
    typename Wide<Real>::U raw, n;
    std::memcpy(&raw, &p, sizeof p);
    std::memcpy(&n, &shifted, sizeof n);
    raw = raw + (n << bits);  // what magic adds is shifted out
    std::memcpy(&p, &raw, sizeof p);
    return x > Real(single ? -87.0 : -708.0) ? p : none;
}

// (x - mean) / sqrt(variance + 1e-5)
template <class Real> static inline void norm(const Real *x, size_t n, Real *out) {
    const Real mean = total(x, n) / Real(n);
    V<Real> squares{};
    size_t i = 0;
    for (; i + LANES<Real> <= n; i += LANES<Real>) {
        const V<Real> away = load(x + i) - mean;
        save<Real>(out + i, away);
        squares += away * away;
    }
    Real lane[LANES<Real>], sum = 0;
    save<Real>(lane, squares);
    for (Real each : lane) sum += each;
    for (; i < n; ++i) {
        out[i] = x[i] - mean;
        sum += out[i] * out[i];
    }
    const Real scale = 1 / std::sqrt(sum / Real(n) + Real(1e-5));
    for (i = 0; i < n; ++i) out[i] *= scale;
}

enum Put { STORE, ADD, SQUARE };

template <Put HOW, class Value> static inline Value put(Value old, Value x) {
    Value none{};
    const Value positive = x > none ? x : none;
    return HOW == STORE ? x : HOW == ADD ? old + x : positive * positive;
}

// out (ROWS, count) = x (ROWS, K) panel (K, PANEL), or added to what is there, or the square of its positive part.
template <class Real, size_t ROWS, Put HOW>
static inline void tile(const Real *x, size_t row, size_t K, const Real *panel, Real *out, size_t out_row, size_t count) {
    constexpr size_t N = LANES<Real>, WIDE = PANEL<Real> / N;
    V<Real> sums[ROWS][WIDE];
    for (size_t r = 0; r < ROWS; ++r)
        for (size_t v = 0; v < WIDE; ++v) sums[r][v] = V<Real>{};
    for (size_t k = 0; k < K; ++k, panel += PANEL<Real>) {
        V<Real> weights[WIDE];
        for (size_t v = 0; v < WIDE; ++v) weights[v] = load(panel + v * N);
        for (size_t r = 0; r < ROWS; ++r)
            for (size_t v = 0; v < WIDE; ++v) sums[r][v] += x[r * row + k] * weights[v];
    }
    for (size_t r = 0; r < ROWS; ++r) {
        Real *to = out + r * out_row, found[PANEL<Real>];
        if (count == PANEL<Real>) {
            for (size_t v = 0; v < WIDE; ++v) save<Real>(to + v * N, put<HOW>(load(to + v * N), sums[r][v]));
            continue;
        }
        for (size_t v = 0; v < WIDE; ++v) save<Real>(found + v * N, sums[r][v]);
        for (size_t i = 0; i < count; ++i) to[i] = put<HOW>(to[i], found[i]);
    }
}

// The same of n rows and a matrix (N, K) in panels; each panel is read once for all rows.
template <Put HOW, class Real>
static inline void multiply(const Real *x, size_t n, size_t K, const Real *panels, size_t N, Real *out) {
    for (size_t j = 0; j < N; j += PANEL<Real>, panels += K * PANEL<Real>) {
        const size_t count = std::min(PANEL<Real>, N - j);
        size_t r = 0;
        for (; r + TILE <= n; r += TILE) tile<Real, TILE, HOW>(x + r * K, K, K, panels, out + r * N + j, N, count);
        if (TILE > 4 && r + 4 <= n) { tile<Real, 4, HOW>(x + r * K, K, K, panels, out + r * N + j, N, count); r += 4; }
        if (TILE > 2 && r + 2 <= n) { tile<Real, 2, HOW>(x + r * K, K, K, panels, out + r * N + j, N, count); r += 2; }
        if (r < n) tile<Real, 1, HOW>(x + r * K, K, K, panels, out + r * N + j, N, count);
    }
}

// Scores q . k of whole blocks of places, the last of which holds place end - 1; keys (blocks, size, BLOCK) are read in order.
template <class Real> static inline void scores(const Real *q, const Real *keys, size_t size, size_t end, Real *out) {
    constexpr size_t N = std::min(LANES<Real>, BLOCK), WIDE = BLOCK / N, CHAINS = WIDE < 4 ? 4 / WIDE : 1;
    for (size_t t = 0; t < end; t += BLOCK) {
        V<Real> sums[CHAINS][WIDE];
        for (size_t c = 0; c < CHAINS; ++c)
            for (size_t v = 0; v < WIDE; ++v) sums[c][v] = V<Real>{};
        size_t d = 0;
        for (; d + CHAINS <= size; d += CHAINS)
            for (size_t c = 0; c < CHAINS; ++c, keys += BLOCK)
                for (size_t v = 0; v < WIDE; ++v) sums[c][v] += q[d + c] * load(keys + v * N);
        for (; d < size; ++d, keys += BLOCK)
            for (size_t v = 0; v < WIDE; ++v) sums[0][v] += q[d] * load(keys + v * N);
        for (size_t v = 0; v < WIDE; ++v) {
            for (size_t c = 1; c < CHAINS; ++c) sums[0][v] += sums[c][v];
            save<Real>(out + t + v * N, sums[0][v]);
        }
    }
}

// out = scale * weights values over `end` places, WIDE vectors from number d on, as long as they fit; values (room, size).
template <class Real, size_t WIDE>
static inline size_t mixed(const Real *weights, const Real *values, size_t size, size_t end, Real scale, size_t d, Real *out) {
    constexpr size_t N = LANES<Real>, CHAINS = 4 / WIDE;
    for (; d + WIDE * N <= size; d += WIDE * N) {
        V<Real> sums[CHAINS][WIDE];
        for (size_t c = 0; c < CHAINS; ++c)
            for (size_t v = 0; v < WIDE; ++v) sums[c][v] = V<Real>{};
        size_t t = 0;
        for (; t + CHAINS <= end; t += CHAINS)
            for (size_t c = 0; c < CHAINS; ++c)
                for (size_t v = 0; v < WIDE; ++v) sums[c][v] += weights[t + c] * load(values + (t + c) * size + d + v * N);
        for (; t < end; ++t)
            for (size_t v = 0; v < WIDE; ++v) sums[0][v] += weights[t] * load(values + t * size + d + v * N);
        for (size_t v = 0; v < WIDE; ++v) {
            for (size_t c = 1; c < CHAINS; ++c) sums[0][v] += sums[c][v];
            save<Real>(out + d + v * N, sums[0][v] * scale);
        }
    }
    return d;
}

// out (size,) = softmax(q . keys) values over the first `end` places; work: room numbers, whole blocks.
template <class Real>
static inline void attend(const Real *q, const Real *keys, const Real *values, size_t size, size_t end, Real *work, Real *out) {
    constexpr size_t N = LANES<Real>;
    scores(q, keys, size, end, work);
    const size_t whole = (end + N - 1) / N * N;
    for (size_t t = end; t < whole; ++t) work[t] = -INFINITY;
    const Real top = largest(work, end);
    for (size_t t = 0; t < whole; t += N) save<Real>(work + t, exp_negative<Real>(load(work + t) - top));
    const Real scale = 1 / total(work, whole);
    size_t d = mixed<Real, 4>(work, values, size, end, scale, 0, out);
    d = mixed<Real, 2>(work, values, size, end, scale, d, out);
    d = mixed<Real, 1>(work, values, size, end, scale, d, out);
    for (; d < size; ++d) {
        Real sum = 0;
        for (size_t t = 0; t < end; ++t) sum += work[t] * values[t * size + d];
        out[d] = sum * scale;
    }
}

// One head's query or key, normed and turned by its position.
template <class Real> static inline void turned(Real *x, size_t size, const Real *cos, const Real *sin, Real *out) {
    norm(x, size, x);
    for (size_t i = 0, half = size / 2; i < half; ++i) {
        out[i] = x[i] * cos[i] - x[half + i] * sin[i];
        out[half + i] = x[half + i] * cos[i] + x[i] * sin[i];
    }
}

// Rows begin to end - 1 of a step.
template <class Real> static void decode(const Step<Real> &s, size_t begin, size_t end) {
    const size_t n = end - begin, w = s.width, size = w / s.heads, head = size * s.room;
    std::vector<Real> space(n * (7 * w + s.hidden) + s.room + size);
    Real *first = space.data(), *h = first + n * w, *x = h + n * w, *mixed = x + n * w, *seen = mixed + 3 * n * w;
    Real *inside = seen + n * w, *work = inside + n * s.hidden, *q = work + s.room;
    for (size_t i = 0; i < n; ++i) {
        const Real *symbol = s.table + size_t(s.symbols[begin + i]) * w;
        const Real *pair = s.pairs ? s.pair + s.place_of(begin + i) * w : nullptr;
        for (size_t d = 0; d < w; ++d) h[i * w + d] = symbol[d] + (pair ? pair[d] : 0);
        norm(h + i * w, w, first + i * w);
    }
    std::copy(first, first + n * w, h);
    const Real *cos = s.turn + s.place * size, *sin = cos + size / 2, *weights = s.weights;
    for (size_t layer = 0; layer < s.layers; ++layer) {
        if (layer)
            for (size_t i = 0; i < n * w; ++i) h[i] += s.again[layer] * first[i];
        for (size_t i = 0; i < n; ++i) norm(h + i * w, w, x + i * w);
        multiply<STORE>(x, n, w, weights, 3 * w, mixed);
        weights += packed<Real>(3 * w, w);
        for (size_t i = 0; i < n; ++i) {
            const size_t slot = layer * s.slots + size_t(s.rows[begin + i]);
            for (size_t k = 0; k < s.heads; ++k) {
                Real *row = mixed + i * 3 * w + k * size, *keys = s.keys + (slot * s.heads + k) * head;
                Real *values = s.values + (slot * s.heads + k) * head;
                turned(row + w, size, cos, sin, q);
                for (size_t d = 0; d < size; ++d) keys[(s.place / BLOCK * size + d) * BLOCK + s.place % BLOCK] = q[d];
                std::copy(row + 2 * w, row + 2 * w + size, values + s.place * size);
                turned(row, size, cos, sin, q);
                for (size_t d = 0; d < size; ++d) q[d] *= s.scale;
                attend(q, keys, values, size, s.place + 1, work, seen + i * w + k * size);
            }
        }
        multiply<ADD>(seen, n, w, weights, w, h);
        weights += packed<Real>(w, w);
        for (size_t i = 0; i < n; ++i) norm(h + i * w, w, x + i * w);
        multiply<SQUARE>(x, n, w, weights, s.hidden, inside);
        weights += packed<Real>(s.hidden, w);
        multiply<ADD>(inside, n, s.hidden, weights, w, h);
        weights += packed<Real>(w, s.hidden);
    }
    for (size_t i = 0; i < n; ++i) norm(h + i * w, w, x + i * w);
    multiply<STORE>(x, n, w, weights, s.count, s.logits + begin * s.count);
}

// The k-th largest of n numbers, -inf where fewer are finite. The k-th largest among the largest of more than k groups is a
// lower bound, which few numbers pass.
template <class Real> static Real kth(const Real *x, size_t n, size_t k, std::vector<Real> &kept) {
    constexpr size_t N = LANES<Real>;
    auto least = [&] {
        if (kept.size() < k) return Real(-INFINITY);
        std::nth_element(kept.begin(), kept.begin() + std::ptrdiff_t(k - 1), kept.end(), std::greater<Real>());
        return kept[k - 1];
    };
    const size_t groups = (2 * k + N - 1) / N * N, whole = n / groups * groups;
    kept.assign(x, x + (whole ? groups : n));
    for (size_t i = groups; i < whole; i += N) save<Real>(&kept[i % groups], larger<Real>(load(&kept[i % groups]), load(x + i)));
    if (whole < 2 * groups) {
        kept.assign(x, x + n);
        return least();
    }
    const Real low = least();
    kept.clear();
    for (size_t i = 0; i < n; i += N) {
        const size_t end = std::min(n, i + N);
        if (end == i + N && !any(load(x + i) >= low)) continue;
        for (size_t j = i; j < end; ++j)
            if (x[j] >= low) kept.push_back(x[j]);
    }
    return least();
}

// Zeroes all masses but the largest, the first first among equals, that reach a share of the sum together.
template <class Real> static void nucleus(Real *mass, size_t n, double share, std::vector<std::uint32_t> &ids) {
    double need = 0, before = 0;
    ids.clear();
    for (size_t i = 0; i < n; ++i) {
        need += share * double(mass[i]);
        if (mass[i] > 0) ids.push_back(std::uint32_t(i));
    }
    auto begin = ids.begin(), end = ids.end();  // those before are in, those behind are out
    while (end - begin > 1) {
        const std::uint32_t pivot = begin[(end - begin) / 2];
        auto ahead = [&](std::uint32_t a) { return mass[a] > mass[pivot] || (mass[a] == mass[pivot] && a < pivot); };
        auto middle = std::partition(begin, end, ahead);
        std::iter_swap(middle, std::find(middle, end, pivot));
        double sum = 0;
        for (auto each = begin; each != middle; ++each) sum += double(mass[*each]);
        if (before + sum >= need) {
            end = middle;
        } else {
            before += sum + double(mass[pivot]);
            begin = middle + 1;
            if (before >= need) end = begin;
        }
    }
    if (begin != end && before >= need) end = begin;
    for (auto each = end; each != ids.end(); ++each) mass[*each] = 0;
}

// Where the running sum of masses passes u times their total, never at a mass of 0; one of them is above 0.
template <class Real> static size_t passed(const Real *mass, size_t n, double u) {
    constexpr size_t PIECE = 64;
    double sum = 0, before = 0;
    for (size_t i = 0; i < n; i += PIECE) sum += double(total(mass + i, std::min(PIECE, n - i)));
    const double goal = u * sum;
    for (size_t i = 0; i < n; i += PIECE) {
        const size_t end = std::min(n, i + PIECE);
        const double after = before + double(total(mass + i, end - i));
        if (after > goal) {
            size_t found = i;
            for (size_t j = i; j < end && before <= goal; ++j) {
                if (mass[j] > 0) found = j;
                before += double(mass[j]);
            }
            return found;
        }
        before = after;
    }
    while (n > 1 && !(mass[n - 1] > 0)) --n;
    return n - 1;
}

template <class Real> static size_t drawn(const Choice &c, const Real *logits, size_t n, double u, Draws<Real> &space) {
    constexpr size_t N = LANES<Real>;
    const size_t whole = (n + N - 1) / N * N;
    space.logits.assign(whole, Real(-INFINITY)), space.masses.resize(whole);
    Real *x = space.logits.data(), *mass = space.masses.data();
    for (size_t i = 0; i < n; ++i) x[i] = logits[i] > -INFINITY ? logits[i] / Real(c.temperature) : -INFINITY;  // so no NaN
    const Real top = largest(x, n);
    if (!(top > -INFINITY)) return n - 1;
    const Real least = c.top_k && c.top_k < n ? kth(x, n, c.top_k, space.kept) : Real(-INFINITY);
    const Real low = c.min_p > 0 ? top + Real(std::log(c.min_p)) : Real(-INFINITY);
    for (size_t i = 0; i < whole; i += N) {
        const V<Real> at = load(x + i), none{};
        save<Real>(mass + i, at >= least ? exp_negative<Real>(at - top) : none);
    }
    if (c.top_p < 1) nucleus(mass, n, c.top_p, space.ids);
    if (low > -INFINITY)
        for (size_t i = 0; i < n; ++i) mass[i] = x[i] >= low ? mass[i] : 0;
    return passed(mass, n, u);
}

template <class Real> static void draw(const Choice &c, const Real *logits, size_t rows, size_t n, const double *u, long long *out) {
    Draws<Real> space;
    for (size_t i = 0; i < rows; ++i) out[i] = (long long)drawn(c, logits + i * n, n, u[i], space);
}
