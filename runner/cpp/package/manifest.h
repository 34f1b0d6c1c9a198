// Checks of a program against its manifest, NAME.json next to NAME.pte. Without one, nothing is checked.
#pragma once

#include <string>

namespace llava {

// Compares the structure of a program, see ProgramStructure, with the manifest. Throws PackageError if it differs.
void check_structure(const std::string& program_path, const std::string& structure);

// Compares all bytes of a program, weights too, with the manifest. Throws PackageError if they differ.
void check_whole_program(const std::string& program_path);

// Throws PackageError unless the program has a manifest.
void require_manifest(const std::string& program_path);

}  // namespace llava
