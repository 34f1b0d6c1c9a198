// The same list as in runner/llava_runner/image/formats.py.
#include "image/formats/known_formats.h"

#include "image/formats/formats.h"

namespace llava {
namespace {

using namespace std::string_view_literals;

constexpr auto kSave = "save it as JPEG or PNG"sv;
constexpr auto kSaveFrame = "save one of its frames as JPEG or PNG"sv;

struct Beginning {
  size_t offset;
  std::string_view bytes;
  std::string_view what = "";  // for formats that are not read
  std::string_view advice = "";
};

constexpr Beginning kRead[] = {
    {0, "\xFF\xD8\xFF"sv}, {0, "\x89PNG\r\n\x1A\n"sv},
    {8, "WEBP"sv},         {0, "GIF87a"sv},
    {0, "GIF89a"sv},       {0, "BM"sv},
    {0, "II*\0"sv},        {0, "MM\0*"sv},
    {0, "II+\0"sv},        {0, "MM\0+"sv},
    {0, "MM*\0"sv},        {0, "II\0*"sv},
};

// The first that fits counts.
constexpr Beginning kOthers[] = {
    {4, "ftypheic"sv, "a HEIC image"sv, kSave},
    {4, "ftypheix"sv, "a HEIC image"sv, kSave},
    {4, "ftypheim"sv, "a HEIC image"sv, kSave},
    {4, "ftypheis"sv, "a HEIC image"sv, kSave},
    {4, "ftyphevc"sv, "a HEIC image"sv, kSave},
    {4, "ftyphevx"sv, "a HEIC image"sv, kSave},
    {4, "ftyphevm"sv, "a HEIC image"sv, kSave},
    {4, "ftyphevs"sv, "a HEIC image"sv, kSave},
    {4, "ftypmif1"sv, "a HEIC image"sv, kSave},
    {4, "ftypmsf1"sv, "a HEIC image"sv, kSave},
    {4, "ftyp"sv, "a video"sv, kSaveFrame},
    {4, "moov"sv, "a video"sv, kSaveFrame},
    {4, "mdat"sv, "a video"sv, kSaveFrame},
    {4, "wide"sv, "a video"sv, kSaveFrame},
    {0, "\x1A\x45\xDF\xA3"sv, "a video"sv, kSaveFrame},
    {0, "FLV\x01"sv, "a video"sv, kSaveFrame},
    {0, "\0\0\x01\xBA"sv, "a video"sv, kSaveFrame},
    {8, "AVI "sv, "a video"sv, kSaveFrame},
    {0, "%PDF"sv, "a PDF"sv, "save the page as JPEG or PNG"sv},
    {0, "%!PS"sv, "PostScript"sv, kSave},
    {0, "\xC5\xD0\xD3\xC6"sv, "PostScript"sv, kSave},
    {0, "<svg"sv, "SVG or other XML"sv, kSave},
    {0, "<?xml"sv, "SVG or other XML"sv, kSave},
    {0, "<!DOCTYPE"sv, "a web page"sv, "download the image itself"sv},
    {0, "<!doctype"sv, "a web page"sv, "download the image itself"sv},
    {0, "<html"sv, "a web page"sv, "download the image itself"sv},
    {0, "8BPS"sv, "a Photoshop image"sv, kSave},
    {0, "\0\0\0\x0CjP  "sv, "a JPEG 2000 image"sv, kSave},
    {0, "\xFF\x4F\xFF\x51"sv, "a JPEG 2000 image"sv, kSave},
    {0, "\0\0\0\x0CJXL "sv, "a JPEG XL image"sv, kSave},
    {0, "\xFF\x0A"sv, "a JPEG XL image"sv, kSave},
    {0, "Pf"sv, "a PFM or PAM image"sv, "save it as PPM, JPEG or PNG"sv},
    {0, "PF"sv, "a PFM or PAM image"sv, "save it as PPM, JPEG or PNG"sv},
    {0, "P7"sv, "a PFM or PAM image"sv, "save it as PPM, JPEG or PNG"sv},
    {0, "\0\0\x01\0"sv, "an icon"sv, kSave},
    {0, "PK\x03\x04"sv, "a ZIP archive"sv, "unpack it; the name of a file with a tensor must end in .pt"sv},
};

bool begins(std::string_view head, const Beginning& beginning) {
  return head.size() > beginning.offset && head.substr(beginning.offset).starts_with(beginning.bytes);
}

bool is_ppm(std::string_view head) {
  return head.size() >= 3 && head[0] == 'P' && head[1] >= '1' && head[1] <= '6' &&
         (head[2] == ' ' || (head[2] >= '\t' && head[2] <= '\r'));
}

bool is_avif(std::string_view head) {
  const std::string_view brands = head.size() > 8 && head.substr(4, 4) == "ftyp" ? head.substr(8, 56) : "";
  return brands.find("avif") != brands.npos || brands.find("avis") != brands.npos;
}

}  // namespace

void check_format(const std::string& path, std::string_view head) {
  for (const Beginning& known : kRead) {
    if (begins(head, known)) {
      return;
    }
  }
  if (is_ppm(head)) {
    return;
  }
  if (head.empty()) {
    fail_to_read(path, "it is empty");
  }
  if (is_avif(head)) {
    fail_to_read(path, "it is an AVIF image; " + std::string(kSave));
  }
  for (const Beginning& other : kOthers) {
    if (begins(head, other)) {
      fail_to_read(path, "it is " + std::string(other.what) + "; " + std::string(other.advice));
    }
  }
  fail_to_read(path, "it is neither JPEG nor PNG, WebP, GIF, BMP, TIFF or PPM");
}

}  // namespace llava
