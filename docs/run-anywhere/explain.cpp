// Explain an image with an explainer graph, in C++17 with ONNX Runtime and OpenCV.
//
//     g++ -std=c++17 -O2 explain.cpp -o explain -I$ORT/include -L$ORT/lib -lonnxruntime $(pkg-config --cflags --libs opencv4)
//     ./explain explainer.onnx photo.jpg overlay.png
//
// ORT is an unpacked release of https://github.com/microsoft/onnxruntime/releases. OpenCV resizes differently from camrt,
// so that scores differ a little.
#include <array>
#include <cstdint>
#include <iostream>
#include <vector>

#include <onnxruntime_cxx_api.h>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main(int argc, char** argv) try {
    if (argc != 4) {
        std::cerr << "usage: explain explainer.onnx image overlay.png\n";
        return 2;
    }
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "explain");
    Ort::Session session(env, argv[1], Ort::SessionOptions{});
    const auto wanted = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    const int side = static_cast<int>(wanted[1]);  // image: N x side x side x 3, uint8, RGB

    const cv::Mat photo = cv::imread(argv[2], cv::IMREAD_COLOR);
    if (photo.empty()) throw std::runtime_error(std::string(argv[2]) + " is no image that can be read");
    cv::Mat square;
    cv::resize(photo, square, {side, side}, 0, 0, photo.cols > side ? cv::INTER_AREA : cv::INTER_CUBIC);
    cv::cvtColor(square, square, cv::COLOR_BGR2RGB);

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::array<std::int64_t, 4> shape{1, side, side, 3};
    auto image = Ort::Value::CreateTensor<std::uint8_t>(memory, square.data, square.total() * 3, shape.data(), shape.size());
    const std::array<const char*, 1> inputs{"image"};
    const std::array<const char*, 3> outputs{"scores", "classes", "heatmaps"};
    auto found = session.Run(Ort::RunOptions{}, inputs.data(), &image, 1, outputs.data(), outputs.size());

    const float* scores = found[0].GetTensorData<float>();
    const std::int64_t* classes = found[1].GetTensorData<std::int64_t>();
    const auto top = found[1].GetTensorTypeAndShapeInfo().GetElementCount();
    for (std::size_t i = 0; i < top; ++i) std::cout << classes[i] << '\t' << scores[classes[i]] << '\n';

    // The map of the best class over the photograph.
    cv::Mat heatmap(side, side, CV_32F, found[2].GetTensorMutableData<float>());
    cv::Mat levels, colors, overlay;
    cv::normalize(cv::max(heatmap, 0), levels, 0, 255, cv::NORM_MINMAX, CV_8U);
    cv::resize(levels, levels, photo.size());
    cv::applyColorMap(levels, colors, cv::COLORMAP_TURBO);
    cv::addWeighted(photo, 0.5, colors, 0.5, 0, overlay);
    if (!cv::imwrite(argv[3], overlay)) throw std::runtime_error(std::string(argv[3]) + " cannot be written");
    return 0;
} catch (const std::exception& error) {
    std::cerr << "explain: " << error.what() << '\n';
    return 1;
}
