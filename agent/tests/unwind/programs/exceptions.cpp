// Throws through frames with destructors, for ever.
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

static volatile unsigned long sink;

struct Guard {
    std::string text;
    explicit Guard(unsigned n) : text(std::to_string(n)) {}
    ~Guard() { sink += text.size(); }
};

__attribute__((noinline)) static unsigned deep(unsigned depth, unsigned n) {
    Guard guard(n + depth);
    if (depth == 0) {
        if (n % 7 == 0) throw std::runtime_error("seven");
        return n;
    }
    return deep(depth - 1, n) + 1;
}

int main() {
    std::puts("ready");
    std::fflush(stdout);
    std::map<std::string, std::vector<unsigned>> seen;
    for (unsigned n = 0;; n++) {
        try {
            seen[std::to_string(n % 50)].push_back(deep(n % 10, n));
        } catch (const std::exception &error) {
            sink += error.what()[0];
        }
        if (n % 1000 == 0) seen.clear();
    }
}
