// ConvReLU's gradients.
//
// Included once per ISA object, inside namespace conv_relu, after conv_relu_forward.h.

inline void input_gradient(const ConvReluGradientProblem&, const Host&) {}
inline void weight_gradient(const ConvReluGradientProblem&, const Host&) {}
