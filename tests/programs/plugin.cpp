/* The code that `templates` loads while it runs.
 *
 * build(plugin.so): g++ -O2 -fomit-frame-pointer -fPIC -shared -fno-optimize-sibling-calls {src} -o {out}
 */
#include "common.h"

namespace plugin {
OWN_FRAME uint64_t inner(uint64_t value) { return churn(value, 40000) + 1; }
} // namespace plugin

extern "C" OWN_FRAME uint64_t plugin_work(uint64_t value, uint64_t (*back)(uint64_t)) {
    return plugin::inner(value) + back(value);
}
