// ConvReLU forward.
//
// Included once per ISA object, after product.h.

inline void forward(const ConvReluProblem&, const Host&) {}
