// The list of kernels, and the choice of instruction set. A new kernel is one line here and its struct in abi.h.
#pragma once

#include "gmk/abi.h"

#define GMK_KERNELS(X)                                             \
  X(affine_coupling, gmk_affine_coupling_args)                     \
  X(affine_coupling_backward, gmk_affine_coupling_args)            \
  X(affine_coupling_double_backward, gmk_affine_coupling_args)     \
  X(planar_flow, gmk_planar_args)                                  \
  X(planar_flow_backward, gmk_planar_args)                         \
  X(planar_flow_double_backward, gmk_planar_args)                  \
  X(minibatch_discrimination, gmk_minibatch_args)                  \
  X(minibatch_discrimination_backward, gmk_minibatch_args)         \
  X(minibatch_discrimination_double_backward, gmk_minibatch_args)  \
  X(virtual_batch_norm, gmk_virtual_norm_args)                     \
  X(virtual_batch_norm_backward, gmk_virtual_norm_args)            \
  X(virtual_batch_norm_double_backward, gmk_virtual_norm_args)     \
  X(reparameterize_kl, gmk_reparameterize_args)                    \
  X(reparameterize_kl_backward, gmk_reparameterize_args)           \
  X(reparameterize_kl_double_backward, gmk_reparameterize_args)    \
  X(bernoulli_log_likelihood, gmk_likelihood_args)                 \
  X(bernoulli_log_likelihood_backward, gmk_likelihood_args)        \
  X(bernoulli_log_likelihood_double_backward, gmk_likelihood_args) \
  X(gaussian_log_likelihood, gmk_likelihood_args)                  \
  X(gaussian_log_likelihood_backward, gmk_likelihood_args)         \
  X(gaussian_log_likelihood_double_backward, gmk_likelihood_args)  \
  X(conv_forward, gmk_conv_args)                                   \
  X(conv_backward, gmk_conv_args)                                  \
  X(gated_conv_forward, gmk_gated_conv_args)                       \
  X(gated_conv_backward, gmk_gated_conv_args)                      \
  X(masked_linear, gmk_masked_linear_args)                         \
  X(masked_linear_backward, gmk_masked_linear_args)                \
  X(gated_activation, gmk_gate_args)                               \
  X(gated_activation_backward, gmk_gate_args)                      \
  X(gated_activation_double_backward, gmk_gate_args)               \
  X(boltzmann_gibbs, gmk_boltzmann_args)                           \
  X(hopfield_recall, gmk_boltzmann_args)                           \
  X(ais_log_z, gmk_ais_args)                                       \
  X(mlp, gmk_mlp_args)                                             \
  X(mlp_backward, gmk_mlp_args)                                    \
  X(pixelcnn_sample, gmk_pixelcnn_args)                            \
  X(wavenet_sample, gmk_wavenet_args)                              \
  X(made_inverse, gmk_made_args)                                   \
  X(made_inverse_backward, gmk_made_args)                          \
  X(random_interpolate, gmk_penalty_args)                          \
  X(norm_penalty, gmk_penalty_args)                                \
  X(random_bits, gmk_random_args)                                  \
  X(random_uniform, gmk_random_args)                               \
  X(random_normal, gmk_random_args)                                \
  X(random_bernoulli, gmk_random_args)                             \
  X(rbm_gibbs, gmk_rbm_gibbs_args)                                 \
  X(rbm_gibbs_fixed, gmk_rbm_gibbs_args)                           \
  X(rbm_conditional, gmk_rbm_conditional_args)                     \
  X(rbm_softplus_sum, gmk_rbm_softplus_args)                       \
  X(rbm_softplus_sum_backward, gmk_rbm_softplus_args)              \
  X(rbm_softplus_sum_double_backward, gmk_rbm_softplus_args)

namespace gmk {

enum class Isa { baseline, avx2, avx512 };

Isa isa();  // the best this machine and build have, or what GMKERNELS_ISA asks for
const char* isa_name(Isa isa);
bool isa_usable(Isa isa);

}  // namespace gmk
