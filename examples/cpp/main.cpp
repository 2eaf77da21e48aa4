// Runs a network that export.py wrote, without Python: network.pt2 of AOTInductor, or network.pt of TorchScript.
//
//     serve libleni_kernels.so network.pt2 images.pt output.pt
#include <dlfcn.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

// The library's operators enter PyTorch's table as it is loaded; from then on they are found by their names.
void load_operators(const char* library) {
  if (dlopen(library, RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
}

// Tensors lie in files of torch.save.
torch::Tensor read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  return torch::jit::pickle_load(bytes).toTensor();
}

void write(const std::string& path, const torch::Tensor& tensor) {
  const std::vector<char> bytes = torch::jit::pickle_save(tensor);
  std::ofstream(path, std::ios::binary).write(bytes.data(), bytes.size());
}

torch::Tensor run(const std::string& network, const torch::Tensor& images) {
  if (network.ends_with(".pt2")) {
    torch::inductor::AOTIModelPackageLoader compiled(network);
    return compiled.run({images}).at(0);
  }
  torch::jit::Module traced = torch::jit::load(network);
  return traced.forward({images}).toTensor();
}

int main(int count, char** arguments) try {
  if (count != 5) throw std::runtime_error("arguments: libleni_kernels.so, a network, images, a file for the output");
  load_operators(arguments[1]);
  const c10::InferenceMode no_gradients;
  const torch::Tensor output = run(arguments[2], read(arguments[3]));
  std::cout << arguments[2] << ": " << output.sizes() << ", mean " << output.mean().item<float>() << '\n';
  write(arguments[4], output);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
