/* C++: templates, virtual calls, exceptions thrown and caught, three threads, and a plugin that
 * is loaded only while the program runs.
 *
 * usage: templates [SECONDS]
 *
 * The plugin `plugin.so` beside the program is loaded one second after the start; then the
 * program says "plugin" and its main thread spends its time there.
 *
 * build: g++ -O2 -fomit-frame-pointer -pthread -fno-optimize-sibling-calls {src} -o {out}
 */
#include "common.h"
#include <dlfcn.h>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace shapes {
template <typename Number, int Turns> struct Mixer {
    OWN_FRAME Number mix(Number value) const { return static_cast<Number>(churn(static_cast<uint64_t>(value), Turns)) + 1; }
};

struct Shape {
    virtual ~Shape() = default;
    virtual uint64_t area(uint64_t value) const = 0;
};

template <typename Number> struct Square : Shape {
    OWN_FRAME uint64_t area(uint64_t value) const override {
        return Mixer<Number, 20000>().mix(static_cast<Number>(value)) + 1;
    }
};

template <typename Number> struct Circle : Shape {
    OWN_FRAME uint64_t area(uint64_t value) const override {
        return Mixer<Number, 40000>().mix(static_cast<Number>(value)) + 2;
    }
};
} // namespace shapes

OWN_FRAME void thrower(int depth) {
    if (depth == 0)
        throw std::runtime_error("expected");
    thrower(depth - 1);
    __asm__ volatile("");
}

OWN_FRAME int catcher(int depth) {
    try {
        thrower(depth);
    } catch (const std::runtime_error &error) {
        return error.what()[0];
    }
    return 0;
}

static void virtual_calls() {
    std::vector<std::unique_ptr<shapes::Shape>> all;
    all.push_back(std::make_unique<shapes::Square<uint64_t>>());
    all.push_back(std::make_unique<shapes::Circle<int64_t>>());
    for (uint64_t value = 1;; value++)
        for (const auto &shape : all)
            value += shape->area(value) & 1;
}

static void exceptions() {
    for (volatile int sum = 0;;)
        sum = sum + catcher(10);
}

using Work = uint64_t (*)(uint64_t value, uint64_t (*back)(uint64_t));

OWN_FRAME uint64_t called_back(uint64_t value) { return churn(value, 20000) + 1; }

static Work load_plugin() {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0)
        return nullptr;
    std::string program(path, static_cast<size_t>(length));
    std::string plugin = program.substr(0, program.rfind('/')) + "/plugin.so";
    void *handle = dlopen(plugin.c_str(), RTLD_NOW);
    if (handle == nullptr) {
        say(dlerror());
        return nullptr;
    }
    return reinterpret_cast<Work>(dlsym(handle, "plugin_work"));
}

int main(int argc, char **argv) {
    live_for(argc > 1 ? argv[1] : nullptr);
    std::thread first(virtual_calls), second(exceptions);
    pthread_setname_np(first.native_handle(), "virtual");
    pthread_setname_np(second.native_handle(), "exceptions");
    ready();
    for (int i = 0; i < 100; i++)
        usleep(10000);
    Work work = load_plugin();
    if (work == nullptr)
        return 1;
    say("plugin\n");
    for (uint64_t value = 1;;)
        value = work(value, called_back);
}
