// ConvReLU forward.
//
// Included once per ISA object, after product.h.

inline void forward(const ConvReluProblem&, const Host&) {}
inline int64_t even_share(int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, most)); }
