// The only file that knows Python: arguments in, a status out as an exception.
#include <optional>
#include <tuple>

#include "arguments.h"
#include "door.h"
#include "gmk/parallel.h"

namespace py = pybind11;

namespace {

using namespace gmk;

template <int (*Entry)(const gmk_affine_coupling_args*)>
void affine(const py::tuple& size, py::handle x, py::handle s, py::handle t, py::handle grad_y, py::handle v_x,
            py::handle v_s, Address grad_logdet, Address mask, Address inner, Address out_x, Address out_s,
            Address out_y, Address out_logdet, Address out_inner, int scale_map, double clamp, bool inverse) {
  const gmk_sizes z = sizes(size);
  const gmk_affine_coupling_args args{z,         rows(x),         rows(s),           rows(t),   rows(grad_y), rows(v_x),
                                      rows(v_s), at(grad_logdet), at<uint8_t>(mask), at(inner), at(out_x),    at(out_s),
                                      at(out_y), at(out_logdet),  at(out_inner),     scale_map, inverse,      clamp};
  run(Entry, args, z.batch * z.outer * z.inner);
}

template <int (*Entry)(const gmk_planar_args*)>
void planar(int64_t batch, int64_t dim, int64_t flows, int dtype, Address z, Address u, Address w, Address b,
            Address grad_z, Address grad_logdet, Address v_z, Address v_u, Address v_w, Address v_b, Address out_z,
            Address out_u, Address out_w, Address out_b, Address out_grad_z, Address out_logdet) {
  const gmk_planar_args args{batch,     dim,        flows,           dtype,     at(z),          at(u),         at(w),
                             at(b),     at(grad_z), at(grad_logdet), at(v_z),   at(v_u),        at(v_w),       at(v_b),
                             at(out_z), at(out_u),  at(out_w),       at(out_b), at(out_grad_z), at(out_logdet)};
  run(Entry, args, batch * dim * flows);
}

template <int (*Entry)(const gmk_minibatch_args*)>
void minibatch(int64_t batch, int64_t kernels, int64_t dim, int dtype, Address m, int64_t stride_i, int64_t stride_b,
               int64_t stride_c, Address grad, Address v, Address out, Address out_m) {
  const gmk_minibatch_args args{batch,    kernels,  dim,      dtype, at(m),   stride_i,
                                stride_b, stride_c, at(grad), at(v), at(out), at(out_m)};
  run(Entry, args, batch * batch * kernels);
}

template <int (*Entry)(const gmk_penalty_args*)>
void penalty(const py::tuple& size, py::handle a, py::handle b, Address weight, Address out, Address out_penalty,
             int64_t first, uint64_t seed, uint64_t offset, double target, bool one_sided) {
  const gmk_sizes z = sizes(size);
  const gmk_penalty_args args{z,       rows(a),         rows(b), at(weight),
                              at(out), at(out_penalty), first,   {int64_t(seed), int64_t(offset)},
                              target,  one_sided};
  run(Entry, args, z.batch * z.outer * z.inner);
}

template <int (*Entry)(const gmk_virtual_norm_args*)>
void virtual_batch_norm(const Triple& shape, py::handle x, py::handle grad, py::handle v_x,
                        const std::array<Address, 14>& at_, double own, double eps) {
  gmk_virtual_norm_args args{};
  args.batch = shape[0], args.channels = shape[1], args.positions = shape[2];
  args.x = rows(x), args.grad = rows(grad), args.v_x = rows(v_x);
  for (int i = 0; i < 4; ++i) {
    args.shared[i] = at(at_[i]), args.v_shared[i] = at(at_[4 + i]), args.out_shared[i] = at(at_[10 + i]);
  }
  args.out = at(at_[8]), args.out_grad = at(at_[9]), args.own = own, args.eps = eps;
  run(Entry, args, shape[0] * shape[1] * shape[2]);
}

template <int (*Entry)(const gmk_reparameterize_args*)>
void reparameterize(const py::tuple& size, py::handle mu, py::handle logvar, py::handle grad_z, py::handle v_mu,
                    py::handle v_logvar, Address grad_kl, Address key, int64_t first, double beta, double free_bits,
                    Address out_mu, Address out_logvar, Address out_z, Address out_kl) {
  const gmk_sizes z = sizes(size);
  const gmk_reparameterize_args args{
      z,     rows(mu), rows(logvar), rows(grad_z), rows(v_mu),     rows(v_logvar), at(grad_kl), at<int64_t>(key),
      first, beta,     free_bits,    at(out_mu),   at(out_logvar), at(out_z),      at(out_kl)};
  run(Entry, args, z.batch * z.outer * z.inner);
}

template <int (*Entry)(const gmk_likelihood_args*)>
void likelihood(const py::tuple& size, py::handle location, py::handle logvar, py::handle x, py::handle weight,
                int64_t x_samples, int64_t weight_samples, py::handle v_location, py::handle v_logvar, Address grad,
                Address out_location, Address out_logvar, Address out, int location_dtype) {
  const gmk_sizes z = sizes(size);
  const gmk_likelihood_args args{
      z,        rows(location),   rows(logvar),   rows(x), rows(weight),   rows(v_location), rows(v_logvar),
      at(grad), at(out_location), at(out_logvar), at(out), location_dtype, x_samples,        weight_samples};
  run(Entry, args, z.batch * z.outer * z.inner);
}

using Coupling = std::tuple<int64_t, int64_t, int, bool, double, Address, Address, Address, Address, Address, Address>;
using Each = std::tuple<int64_t, Address, Address>;
using Judge = std::tuple<Address, int64_t, int64_t, Address, Address>;

template <int (*Entry)(const gmk_mlp_args*)>
void mlp(int64_t batch, const std::vector<int64_t>& widths, int dtype, int activation, Address x, int64_t x_step,
         Address grad, int64_t grad_step, const std::vector<Address>& parameters, Address out, Address hidden,
         Address out_x, const std::vector<Address>& out_parameters, const std::optional<Coupling>& coupling,
         const std::optional<Each>& each, const std::optional<Judge>& judge) {
  gmk_mlp_args args{};
  args.batch = batch, args.layers = int64_t(widths.size()) - 1;
  int64_t work = 0;
  for (int64_t l = 0; l <= args.layers; ++l) args.widths[l] = widths[l];
  args.dtype = dtype, args.activation = activation;
  args.x = at(x), args.x_step = x_step, args.grad = at(grad), args.grad_step = grad_step;
  args.out = at(out), args.hidden = at(hidden), args.out_x = at(out_x);
  for (int64_t l = 0; l < args.layers; ++l) {
    args.weight[l] = at(parameters[2 * l]), args.bias[l] = at(parameters[2 * l + 1]);
    if (!out_parameters.empty())
      args.out_weight[l] = at(out_parameters[2 * l]), args.out_bias[l] = at(out_parameters[2 * l + 1]);
    work += batch * widths[l] * widths[l + 1];
  }
  if (coupling) {
    Address grad_logdet, out_logdet, log_scale, shift, out_log_scale, out_shift;
    std::tie(args.features, args.split, args.scale_map, args.inverse, args.clamp, grad_logdet, out_logdet, log_scale,
             shift, out_log_scale, out_shift) = *coupling;
    args.grad_logdet = at(grad_logdet), args.out_logdet = at(out_logdet);
    args.norm_log_scale = at(log_scale), args.norm_shift = at(shift);
    args.out_norm_log_scale = at(out_log_scale), args.out_norm_shift = at(out_shift);
  }
  if (each) args.rows = std::get<0>(*each), args.each = at(std::get<1>(*each)), args.out_each = at(std::get<2>(*each));
  if (judge) {
    Address target, out_likelihood, grad_likelihood;
    std::tie(target, args.target_step, args.target_samples, out_likelihood, grad_likelihood) = *judge;
    args.target = at(target), args.out_likelihood = at(out_likelihood), args.grad_likelihood = at(grad_likelihood);
  }
  run(Entry, args, work);
}

template <int (*Entry)(const gmk_rbm_gibbs_args*)>
int rbm_gibbs(int64_t chains, int64_t visible, int64_t hidden, int64_t steps, int64_t first, int dtype, bool gaussian,
              Address v, Address weight, Address visible_bias, Address hidden_bias, Address beta, Address clamp,
              int64_t clamp_step, Address key, Address out_v, Address out_h) {
  return look(Entry,
              {chains, visible, hidden, steps, first, dtype, gaussian, at(v), at(weight), at(visible_bias),
               at(hidden_bias), at(beta), at<uint8_t>(clamp), clamp_step, at<int64_t>(key), at(out_v), at(out_h)});
}

int rbm_conditional(int64_t chains, int64_t visible, int64_t hidden, int64_t first, int dtype, bool to_visible,
                    bool gaussian, Address given, Address weight, Address bias, Address beta, Address key,
                    Address out_sample, Address out_mean) {
  return look(gmk_rbm_conditional, {chains, visible, hidden, first, dtype, to_visible, gaussian, at(given), at(weight),
                                    at(bias), at(beta), at<int64_t>(key), at(out_sample), at(out_mean)});
}

template <int (*Entry)(const gmk_rbm_softplus_args*)>
void rbm_softplus(int64_t batch, int64_t units, int dtype, Address field, Address grad, Address v, Address out,
                  Address out_field) {
  run(Entry, gmk_rbm_softplus_args{batch, units, dtype, at(field), at(grad), at(v), at(out), at(out_field)},
      batch * units);
}

template <int (*Entry)(const gmk_random_args*)>
void random(Address out, Address p, int dtype, int64_t count, int64_t start, uint64_t seed, uint64_t offset) {
  run(Entry, gmk_random_args{count, start, seed, offset, dtype, at(p), at(out)}, count);
}

template <int (*Entry)(const gmk_boltzmann_args*)>
void boltzmann(int64_t batch, int64_t units, int dtype, Address x, Address weight, Address bias, Address beta,
               Address clamp, Address order, Address key, int64_t first, int64_t sweeps, bool spin, Address out,
               Address used) {
  const gmk_boltzmann_args args{batch,
                                units,
                                dtype,
                                at(x),
                                at(weight),
                                at(bias),
                                at(beta),
                                at<uint8_t>(clamp),
                                at<int64_t>(order),
                                at<int64_t>(key),
                                first,
                                sweeps,
                                spin,
                                at(out),
                                at<int64_t>(used)};
  run(Entry, args, batch * units * units);
}

void anneal(int64_t visible, int64_t hidden, int64_t chains, int64_t steps, int dtype, Address weight,
            Address visible_bias, Address hidden_bias, Address betas, Address base_bias, Address start, Address key,
            int64_t first, double log_base, Address out) {
  const gmk_ais_args args{visible,    hidden,           chains,          steps,     dtype,
                          at(weight), at(visible_bias), at(hidden_bias), at(betas), at(base_bias),
                          at(start),  at<int64_t>(key), first,           log_base,  at(out)};
  run(gmk_ais_log_z, args, visible * hidden * chains);
}

// (batch, channels, outputs, height, width), (kernel_height, kernel_width, dilation, groups, rule)
using Five = std::array<int64_t, 5>;
gmk_conv_args conv_args(const Five& size, const Five& kernel, int dtype, py::handle x, py::handle grad, py::handle out,
                        Address weight, Address bias, Address out_weight, Address out_bias) {
  return {size[0],     size[1],    size[2],    size[3],  size[4],        kernel[0],
          kernel[1],   kernel[2],  kernel[3],  dtype,    int(kernel[4]), image(x),
          image(grad), image(out), at(weight), at(bias), at(out_weight), at(out_bias)};
}
int64_t work_of(const Five& size) { return size[0] * size[1] * size[2] * size[3] * size[4]; }

template <int (*Entry)(const gmk_conv_args*)>
void conv(const Five& size, const Five& kernel, int dtype, py::handle x, py::handle grad, py::handle out,
          Address weight, Address bias, Address out_weight, Address out_bias) {
  run(Entry, conv_args(size, kernel, dtype, x, grad, out, weight, bias, out_weight, out_bias), work_of(size));
}

// As conv(), with the images of the condition and of the gradient by it.
template <int (*Entry)(const gmk_gated_conv_args*)>
void gated_conv(const Five& size, const Five& kernel, int dtype, py::handle x, py::handle grad, py::handle out,
                Address weight, Address bias, Address out_weight, Address out_bias, py::handle cond,
                py::handle out_cond, Address out_label, Address kept) {
  const auto args = conv_args(size, kernel, dtype, x, grad, out, weight, bias, out_weight, out_bias);
  run(Entry, gmk_gated_conv_args{args, image(cond), image(out_cond), at(out_label), at(kept)}, work_of(size));
}

template <int (*Entry)(const gmk_gate_args*)>
void gate(const py::tuple& size, py::handle a, py::handle b, py::handle cond_a, py::handle cond_b, py::handle grad,
          py::handle v_a, py::handle v_b, py::handle out, py::handle out_a, py::handle out_b) {
  const gmk_sizes z = sizes(size);
  const gmk_gate_args args{z,         rows(a),   rows(b),   rows(cond_a), rows(cond_b), rows(grad),
                           rows(v_a), rows(v_b), rows(out), rows(out_a),  rows(out_b)};
  run(Entry, args, z.batch * z.outer * z.inner);
}

// Bytes of state that the call needs; without a state that is all it does.
int64_t pixelcnn(const std::array<int64_t, 4>& shape, const std::array<int64_t, 3>& sizes,
                 const std::vector<int64_t>& kernels, int64_t first, int dtype, bool gated, int groups, int head,
                 int levels, double temperature, const std::array<Address, 6>& in, int64_t row_begin, int64_t row_end,
                 int64_t state_bytes, Address image) {
  const auto [parameters, values, condition, key, mask, state] = in;
  const gmk_pixelcnn_args args{shape[0],
                               shape[1],
                               shape[2],
                               shape[3],
                               sizes[0],
                               sizes[1],
                               sizes[2],
                               int64_t(kernels.size()),
                               first,
                               dtype,
                               gated,
                               groups,
                               head,
                               levels,
                               temperature,
                               kernels.data(),
                               at(parameters),
                               at(values),
                               at(condition),
                               at<int64_t>(key),
                               at<uint8_t>(mask),
                               row_begin,
                               row_end,
                               at(state),
                               &state_bytes,
                               at<int64_t>(image)};
  run(gmk_pixelcnn_sample, args, state ? kLong : 0);
  return state_bytes;
}

// (batch, time, inputs, residual, gate, skip, hidden, outputs, first_kernel, kernel, local_channels); as pixelcnn().
int64_t wavenet(const std::array<int64_t, 11>& sizes, const std::vector<int64_t>& dilations, int64_t first, int dtype,
                int head, int levels, double temperature, const std::array<Address, 7>& in, const Triple& times,
                int64_t state_bytes, Address out) {
  const auto [batch, time, inputs, residual, gate, skip, hidden, outputs, first_kernel, kernel, local_channels] = sizes;
  const auto [parameters, values, condition, local, local_weight, key, state] = in;
  const gmk_wavenet_args args{batch,
                              time,
                              inputs,
                              residual,
                              gate,
                              skip,
                              hidden,
                              outputs,
                              first_kernel,
                              kernel,
                              int64_t(dilations.size()),
                              local_channels,
                              first,
                              dtype,
                              head,
                              levels,
                              temperature,
                              dilations.data(),
                              at(parameters),
                              at(values),
                              at(condition),
                              at(local),
                              at(local_weight),
                              at<int64_t>(key),
                              times[0],
                              times[1],
                              times[2],
                              at(state),
                              &state_bytes,
                              at(out)};
  run(gmk_wavenet_sample, args, state ? kLong : 0);
  return state_bytes;
}

template <int (*Entry)(const gmk_masked_linear_args*)>
void masked(int64_t outputs, const py::tuple& size, py::handle x, py::handle grad, Address weight, Address bias,
            Address seen, bool relu, Address out, Address out_weight, Address out_bias) {
  const gmk_sizes z = sizes(size);
  const gmk_masked_linear_args args{z.batch,  z.inner,           outputs, rows(x), rows(grad),     at(weight),
                                    at(bias), at<int64_t>(seen), relu,    at(out), at(out_weight), at(out_bias)};
  run(Entry, args, z.batch * z.inner * outputs);
}

template <int (*Entry)(const gmk_made_args*)>
void invert_made(int64_t batch, int64_t features, const std::vector<int64_t>& widths, int dtype, bool residual,
                 int activation, int scale_map, double clamp, Address degrees, Address parameters, Address condition,
                 Address x, Address grad_x, Address grad_logdet, Address out_x, Address out_logdet,
                 Address out_parameters, Address out_condition) {
  const gmk_made_args args{batch,
                           features,
                           int64_t(widths.size()),
                           dtype,
                           residual,
                           activation,
                           scale_map,
                           clamp,
                           widths.data(),
                           at<int64_t>(degrees),
                           at(parameters),
                           at(condition),
                           at(x),
                           at(grad_x),
                           at(grad_logdet),
                           at(out_x),
                           at(out_logdet),
                           at(out_parameters),
                           at(out_condition)};
  run(Entry, args, batch * features * kLong);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() =
      "The C++ core of gmkernels. Called by the launchers in gmkernels/ops/*/native.py; see csrc/include/gmk/abi.h.";

  m.def("affine_coupling", affine<gmk_affine_coupling>);
  m.def("affine_coupling_backward", affine<gmk_affine_coupling_backward>);
  m.def("affine_coupling_double_backward", affine<gmk_affine_coupling_double_backward>);

  m.def("planar_flow", planar<gmk_planar_flow>);
  m.def("planar_flow_backward", planar<gmk_planar_flow_backward>);
  m.def("planar_flow_double_backward", planar<gmk_planar_flow_double_backward>);

  m.def("minibatch_discrimination", minibatch<gmk_minibatch_discrimination>);
  m.def("minibatch_discrimination_backward", minibatch<gmk_minibatch_discrimination_backward>);
  m.def("minibatch_discrimination_double_backward", minibatch<gmk_minibatch_discrimination_double_backward>);

  m.def("random_interpolate", penalty<gmk_random_interpolate>);
  m.def("norm_penalty", penalty<gmk_norm_penalty>);
  m.def("virtual_batch_norm", virtual_batch_norm<gmk_virtual_batch_norm>);
  m.def("virtual_batch_norm_backward", virtual_batch_norm<gmk_virtual_batch_norm_backward>);
  m.def("virtual_batch_norm_double_backward", virtual_batch_norm<gmk_virtual_batch_norm_double_backward>);

  m.def("reparameterize_kl", reparameterize<gmk_reparameterize_kl>);
  m.def("reparameterize_kl_backward", reparameterize<gmk_reparameterize_kl_backward>);
  m.def("reparameterize_kl_double_backward", reparameterize<gmk_reparameterize_kl_double_backward>);

  m.def("bernoulli_log_likelihood", likelihood<gmk_bernoulli_log_likelihood>);
  m.def("bernoulli_log_likelihood_backward", likelihood<gmk_bernoulli_log_likelihood_backward>);
  m.def("bernoulli_log_likelihood_double_backward", likelihood<gmk_bernoulli_log_likelihood_double_backward>);

  m.def("gaussian_log_likelihood", likelihood<gmk_gaussian_log_likelihood>);
  m.def("gaussian_log_likelihood_backward", likelihood<gmk_gaussian_log_likelihood_backward>);
  m.def("gaussian_log_likelihood_double_backward", likelihood<gmk_gaussian_log_likelihood_double_backward>);

  m.def("conv_forward", conv<gmk_conv_forward>);
  m.def("conv_backward", conv<gmk_conv_backward>);
  m.def("gated_conv_forward", gated_conv<gmk_gated_conv_forward>);
  m.def("gated_conv_backward", gated_conv<gmk_gated_conv_backward>);
  m.def("gated_activation", gate<gmk_gated_activation>);
  m.def("gated_activation_backward", gate<gmk_gated_activation_backward>);
  m.def("gated_activation_double_backward", gate<gmk_gated_activation_double_backward>);

  m.def("boltzmann_gibbs", boltzmann<gmk_boltzmann_gibbs>);
  m.def("hopfield_recall", boltzmann<gmk_hopfield_recall>);
  m.def("ais_log_z", anneal);

  m.def("mlp", mlp<gmk_mlp>);
  m.def("mlp_backward", mlp<gmk_mlp_backward>);

  m.def("pixelcnn_sample", pixelcnn);

  m.def("made_inverse", invert_made<gmk_made_inverse>);
  m.def("made_inverse_backward", invert_made<gmk_made_inverse_backward>);

  m.def("masked_linear", masked<gmk_masked_linear>);
  m.def("masked_linear_backward", masked<gmk_masked_linear_backward>);
  m.def("wavenet_sample", wavenet);

  m.def("random_bits", [](Address out, int64_t count, int64_t start, uint64_t seed, uint64_t offset) {
    random<gmk_random_bits>(out, 0, 0, count, start, seed, offset);
  });
  m.def("random_uniform", [](Address out, int dtype, int64_t count, int64_t start, uint64_t seed, uint64_t offset) {
    random<gmk_random_uniform>(out, 0, dtype, count, start, seed, offset);
  });
  m.def("random_normal", [](Address out, int dtype, int64_t count, int64_t start, uint64_t seed, uint64_t offset) {
    random<gmk_random_normal>(out, 0, dtype, count, start, seed, offset);
  });
  m.def("random_bernoulli", random<gmk_random_bernoulli>);

  m.def("rbm_gibbs", rbm_gibbs<gmk_rbm_gibbs>);
  m.def("rbm_gibbs_fixed", rbm_gibbs<gmk_rbm_gibbs_fixed>);
  m.def("rbm_conditional", rbm_conditional);
  m.def("rbm_softplus_sum", rbm_softplus<gmk_rbm_softplus_sum>);
  m.def("rbm_softplus_sum_backward", rbm_softplus<gmk_rbm_softplus_sum_backward>);
  m.def("rbm_softplus_sum_double_backward", rbm_softplus<gmk_rbm_softplus_sum_double_backward>);

  m.def("take_tensors", exchange::open);
  m.def("open_door", door::open);
  PyModule_AddFunctions(m.ptr(), door::methods);
  m.def("isa", [] { return isa_name(isa()); });
  m.def("isas", [] {
    py::list usable;
    for (auto isa : {Isa::baseline, Isa::avx2, Isa::avx512})
      if (isa_usable(isa)) usable.append(isa_name(isa));
    return usable;
  });
  m.def("pool", [] { return pool_name(); });
}
