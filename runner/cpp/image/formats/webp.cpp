// Decodes WebP files, of an animated one the first frame, by libwebp.
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>
#include <utility>
#include <vector>

#include "image/formats/formats.h"
#include "image/formats/pixels.h"

namespace llava {
namespace {

struct DeleteDemuxer {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};

// The parts of a file that frees them.
class Iterators {
 public:
  explicit Iterators(const WebPDemuxer* demuxer) : demuxer_(demuxer) {}
  ~Iterators() {
    WebPDemuxReleaseIterator(&frame_);
    WebPDemuxReleaseChunkIterator(&chunk_);
  }
  Iterators(const Iterators&) = delete;
  Iterators& operator=(const Iterators&) = delete;

  // Returns the first frame, or nullptr.
  const WebPIterator* first_frame() { return WebPDemuxGetFrame(demuxer_, 1, &frame_) ? &frame_ : nullptr; }

  // Returns the content of the first chunk of a name of four letters, or nothing.
  std::string_view chunk(const char* name) {
    WebPDemuxReleaseChunkIterator(&chunk_);
    chunk_ = {};
    if (!WebPDemuxGetChunk(demuxer_, name, 1, &chunk_)) {
      return {};
    }
    return {reinterpret_cast<const char*>(chunk_.chunk.bytes), chunk_.chunk.size};
  }

 private:
  const WebPDemuxer* demuxer_;
  WebPIterator frame_{};
  WebPChunkIterator chunk_{};
};

// Decodes a frame to its place on a canvas of 3 or 4 bytes a pixel. Returns whether it could be.
bool decode_frame(const WebPIterator& frame, int canvas_width, int channels, std::vector<uint8_t>& canvas) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) {
    return false;
  }
  const size_t stride = size_t(canvas_width) * channels;
  const size_t start = size_t(frame.y_offset) * stride + size_t(frame.x_offset) * channels;
  config.output.colorspace = channels == 4 ? MODE_RGBA : MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = canvas.data() + start;
  config.output.u.RGBA.stride = int(stride);
  config.output.u.RGBA.size = canvas.size() - start;
  return WebPDecode(frame.fragment.bytes, frame.fragment.size, &config) == VP8_STATUS_OK;
}

}  // namespace

ImageHWC read_webp(const std::string& path, std::string_view content) {
  const WebPData data{reinterpret_cast<const uint8_t*>(content.data()), content.size()};
  const std::unique_ptr<WebPDemuxer, DeleteDemuxer> demuxer(WebPDemux(&data));
  if (!demuxer) {
    fail_to_read(path, "it is truncated or damaged");
  }
  const int64_t width = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH);
  const int64_t height = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT);
  check_size(path, width, height);
  Iterators parts(demuxer.get());
  const WebPIterator* frame = parts.first_frame();
  // What the demuxer checks too; written here because the frame is decoded into memory of that size.
  const bool fits = frame && frame->x_offset >= 0 && frame->y_offset >= 0 && frame->width <= width - frame->x_offset &&
                    frame->height <= height - frame->y_offset;
  WebPBitstreamFeatures features;
  const bool has_alpha = WebPGetFeatures(data.bytes, data.size, &features) != VP8_STATUS_OK || features.has_alpha;
  ImageHWC image{static_cast<int>(width), static_cast<int>(height)};
  if (!has_alpha) {
    if (!fits || !decode_frame(*frame, image.width, 3, image.bytes)) {
      fail_to_read(path, "it is damaged");
    }
  } else {
    std::vector<uint8_t> canvas(size_t(width) * size_t(height) * 4);
    if (!fits || !decode_frame(*frame, image.width, 4, canvas)) {
      fail_to_read(path, "it is damaged");
    }
    for (size_t i = 0; i < image.bytes.size(); ++i) {
      const uint8_t* pixel = canvas.data() + i / 3 * 4;
      image.bytes[i] = over_white(pixel[i % 3], pixel[3]);
    }
  }
  Metadata metadata;
  if (const std::string_view exif = parts.chunk("EXIF"); !exif.empty()) {
    metadata.exif = exif;
  }
  metadata.xmp = parts.chunk("XMP ");
  return upright(std::move(image), orientation_of(metadata));
}

}  // namespace llava
