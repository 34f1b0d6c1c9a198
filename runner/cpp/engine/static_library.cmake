# libllava_engine.a: the engine for programs that link it in, as one object. Its own parts and the libraries for images
# and text are in it, and only the functions of llava.h are visible, so no name can clash with the program's. As one
# object it is linked whole, so the attention operators are registered though nothing calls them by name. ExecuTorch's
# own kernels stay shared libraries, since its wheel has no static ones.
if(ANDROID)
  return()  # its linker lacks the option below, and apps take shared libraries
endif()

set(libraries ${PCRE2_LIBRARY} ${UTF8PROC_LIBRARY})
foreach(format JPEG ZLIB TIFF)
  if(${format}_FOUND)
    list(APPEND libraries $<TARGET_FILE:${format}::${format}>)
  endif()
endforeach()
if(WEBP_FOUND)
  get_target_property(webp WEBP::WEBP INTERFACE_LINK_LIBRARIES)
  list(APPEND libraries ${webp})
endif()
if(TIFF_FOUND)
  list(APPEND libraries ${tiff_needs})
endif()
set(static_libraries "$<FILTER:${libraries},INCLUDE,[.]a$>")
set(shared_libraries "$<FILTER:${libraries},EXCLUDE,[.]a$>")  # where the system has no static ones

add_library(llava_parts STATIC engine/own_stderr.cpp)
target_link_libraries(llava_parts PRIVATE llava_interface llava_program)
set(object ${CMAKE_BINARY_DIR}/llava_engine.o)
set(archive ${CMAKE_BINARY_DIR}/libllava_engine.a)
add_custom_command(
  OUTPUT ${archive}
  COMMAND ${CMAKE_LINKER} -r --force-group-allocation --defsym=stderr=own_stderr -o ${object}
    --whole-archive $<TARGET_FILE:llava_parts> --no-whole-archive
    --start-group $<TARGET_FILE:llava> $<TARGET_FILE:llava_attention> "${static_libraries}" --end-group
  COMMAND ${CMAKE_OBJCOPY} --wildcard --keep-global-symbol=llava_* ${object}
  COMMAND ${CMAKE_COMMAND} -E rm -f ${archive}
  COMMAND ${CMAKE_AR} qcs ${archive} ${object}
  COMMAND ${CMAKE_COMMAND} -E rm ${object}
  DEPENDS llava_parts llava llava_attention
  COMMAND_EXPAND_LISTS VERBATIM)
add_custom_target(llava_engine_static ALL DEPENDS ${archive})

# What programs link besides, for CMake and pkg-config. A linker would leave out the libraries of kernels, in which
# nothing is called by name.
set(needed)
set(executorch_files)
foreach(library ${sdk})
  string(APPEND needed ",-l:$<TARGET_FILE_NAME:${library}>")
  list(APPEND executorch_files "\${llava_engine_prefix}/lib/$<TARGET_FILE_NAME:${library}>")
endforeach()
foreach(file llava_engine_static.cmake llava_engine_static.pc)
  configure_file(engine/${file}.in ${file}.in @ONLY)
  file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/${file} INPUT ${CMAKE_BINARY_DIR}/${file}.in)
endforeach()
install(FILES ${archive} DESTINATION lib)
install(FILES ${CMAKE_BINARY_DIR}/llava_engine_static.cmake DESTINATION lib/cmake/llava_engine)
install(FILES ${CMAKE_BINARY_DIR}/llava_engine_static.pc DESTINATION lib/pkgconfig)
