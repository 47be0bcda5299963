// Tabu search over directed acyclic graphs, with kicks from the best graph. Included by counting.cpp.
namespace {

constexpr double TIE = 1e-9;  // nats; gains that differ by less are the same, and the first in order is taken

struct Options {
    size_t tabu, patience, restarts, kicks, moves;
    std::uint64_t seed;
};

struct Step { double kind, parent, child, total; };  // kind: 0 add, 1 remove, 2 reverse

class Search {
  public:
    double best_total = 0;
    size_t evaluated = 0;
    std::vector<Step> steps;

    Search(Evaluator &e, const Options &o, const unsigned char *a, const unsigned char *r, const long long *m)
        : ev(e), options(o), V(e.V), words((V + 63) / 64), allowed(a), required(r), most(m), parents(V), rows(V), banned(V * V, 0) {}

    bool start(const unsigned char *graph) {
        for (size_t z = 0; z < V; ++z)
            for (size_t y = 0; y < V; ++y)
                if (graph[z * V + y]) parents[y].push_back(z);
        return close();
    }

    void go() {
        for (size_t y = 0; y < V; ++y) look(y);
        keep();
        climb();
        for (size_t k = 0; k < options.restarts && steps.size() < options.moves; ++k) {
            restore();
            kick();
            climb();
        }
    }

    void write(unsigned char *graph, double *history, size_t room) const {
        std::memset(graph, 0, V * V);
        for (size_t y = 0; y < V; ++y)
            for (size_t z : best[y]) graph[z * V + y] = 1;
        for (size_t i = 0; i < std::min(room, steps.size()); ++i) std::memcpy(history + 4 * i, &steps[i], sizeof(Step));
    }

  private:
    typedef std::vector<size_t> Set;
    struct Move { int kind; size_t z, y; double gain; };

    Evaluator &ev;
    const Options options;
    const size_t V, words;
    const unsigned char *allowed, *required;
    const long long *most;
    std::vector<Set> parents, best;
    std::vector<std::shared_ptr<std::vector<double>>> rows;  // a family's scores, and all that are one parent away
    std::vector<size_t> banned;                              // [z, y]: the step from which the pair may change again
    std::vector<std::uint64_t> above;                        // ancestors' bits
    std::map<std::pair<size_t, Set>, std::shared_ptr<std::vector<double>>> known;

    bool is_above(size_t a, size_t y) const { return above[y * words + a / 64] >> (a % 64) & 1; }
    bool has(size_t y, size_t z) const { return std::binary_search(parents[y].begin(), parents[y].end(), z); }
    double own(size_t y) const { return (*rows[y])[y]; }

    // Ancestors of all; false where there is a cycle.
    bool close() {
        above.assign(V * words, 0);
        std::vector<size_t> open(V), ready;
        std::vector<Set> children(V);
        for (size_t y = 0; y < V; ++y) {
            open[y] = parents[y].size();
            if (!open[y]) ready.push_back(y);
            for (size_t z : parents[y]) children[z].push_back(y);
        }
        for (size_t i = 0; i < ready.size(); ++i)
            for (size_t y : children[ready[i]]) {
                for (size_t w = 0; w < words; ++w) above[y * words + w] |= above[ready[i] * words + w];
                above[y * words + ready[i] / 64] |= std::uint64_t(1) << (ready[i] % 64);
                if (!--open[y]) ready.push_back(y);
            }
        return ready.size() == V;
    }

    void look(size_t y) {
        auto &found = known[{y, parents[y]}];
        if (!found) {
            found = std::make_shared<std::vector<double>>(V, -INFINITY);
            ev.toggled(y, parents[y], found->data(), (long long)parents[y].size() < most[y]);
            ++evaluated;
        }
        rows[y] = found;
    }

    double total() const {
        double sum = 0;
        for (size_t y = 0; y < V; ++y) sum += own(y);
        return sum;
    }

    void keep() { best = parents, best_total = total(); }

    void restore() {
        parents = best;
        close();
        for (size_t y = 0; y < V; ++y) look(y);
        std::fill(banned.begin(), banned.end(), 0);
    }

    bool may_add(size_t z, size_t y) const {
        return z != y && allowed[z * V + y] && (long long)parents[y].size() < most[y] && !is_above(y, z);
    }

    // No other way leads from z to y, so that z -> y can be turned.
    bool may_turn(size_t z, size_t y) const {
        if (!allowed[y * V + z] || (long long)parents[z].size() >= most[z]) return false;
        for (size_t p : parents[y])
            if (p != z && is_above(z, p)) return false;
        return true;
    }

    template <class Visit>
    void moves(Visit visit) const {
        for (size_t y = 0; y < V; ++y) {
            const double *row = rows[y]->data(), here = row[y];
            for (size_t z = 0, k = 0; z < V; ++z) {
                if (k < parents[y].size() && parents[y][k] == z) {
                    ++k;
                    if (required[z * V + y]) continue;
                    visit(Move{1, z, y, row[z] - here});
                    if (may_turn(z, y)) visit(Move{2, z, y, row[z] - here + (*rows[z])[y] - own(z)});
                } else if (may_add(z, y)) {
                    visit(Move{0, z, y, row[z] - here});
                }
            }
        }
    }

    void toggle(size_t z, size_t y) {
        Set &set = parents[y];
        auto at = std::lower_bound(set.begin(), set.end(), z);
        if (at != set.end() && *at == z) set.erase(at);
        else set.insert(at, z);
    }

    void make(const Move &move) {
        toggle(move.z, move.y);
        if (move.kind == 2) toggle(move.y, move.z);
        close();
        look(move.y);
        if (move.kind == 2) look(move.z);
        steps.push_back({double(move.kind), double(move.z), double(move.y), total()});
        const size_t until = steps.size() + options.tabu;
        banned[move.z * V + move.y] = banned[move.y * V + move.z] = until;
    }

    void climb() {
        double now = total();
        double local = now;  // best of this climb
        for (size_t idle = 0; idle <= options.patience && steps.size() < options.moves;) {
            Move chosen{-1, 0, 0, -INFINITY};
            moves([&](const Move &m) {
                if (m.gain > chosen.gain + TIE && (banned[m.z * V + m.y] <= steps.size() || now + m.gain > local + TIE)) chosen = m;
            });
            if (chosen.kind < 0 || (!options.patience && chosen.gain <= TIE)) break;
            make(chosen);
            now = steps.back().total;
            if (now > local + TIE) local = now, idle = 0;
            else ++idle;
            if (now > best_total + TIE) keep();
        }
    }

    std::uint64_t draw() {  // splitmix64
        std::uint64_t x = options.seed + (++drawn) * 0x9E3779B97F4A7C15ull;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
        return x ^ (x >> 31);
    }
    std::uint64_t drawn = 0;

    void kick() {
        for (size_t k = 0; k < options.kicks; ++k) {
            std::vector<Move> all;
            moves([&](const Move &m) { if (m.kind) all.push_back(m); });
            std::vector<Move> adds;
            moves([&](const Move &m) { if (!m.kind) adds.push_back(m); });
            const bool third = draw() % 3 == 0;
            auto &from = (third && !adds.empty()) || all.empty() ? adds : all;
            if (from.empty()) return;
            make(from[draw() % from.size()]);
        }
    }
};

}  // namespace
