#include "image/read_image.h"

#include <string_view>

#include "base/errors.h"
#include "base/files.h"
#include "image/formats/formats.h"

namespace llava {

Picture read_picture(const std::string& path) {
  const std::string content = read_file<ImageError>(path);
  const std::string_view bytes = content;
  if (bytes.substr(0, 2) == "\xFF\xD8") {
#ifdef LLAVA_JPEG
    return read_jpeg(path, bytes);
#else
    fail_to_read(path, "this llava_main was built without libjpeg; make it a PPM, or take image.pt");
#endif
  }
  if (bytes.substr(0, 8) == "\x89PNG\r\n\x1A\n") {
#ifdef LLAVA_PNG
    return read_png(path, bytes);
#else
    fail_to_read(path, "this llava_main was built without libpng; make it a PPM, or take image.pt");
#endif
  }
  if (bytes.substr(0, 2) == "P6") {
    return read_ppm(path, bytes);
  }
  fail_to_read(path, "it is neither JPEG nor PNG nor binary PPM");
}

}  // namespace llava
