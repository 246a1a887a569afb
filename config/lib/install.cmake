# Included by the install scripts that CMake makes of install(CODE ...): what is put under the
# digest of its contents, so that a new version lies beside the one in use, and what is the operator's.

# magnetar_place(FOLDER DIGEST FILES...): FOLDER/DIGEST with these files, unless it is there.
function(magnetar_place folder digest)
  set(target "$ENV{DESTDIR}${folder}/${digest}")
  if(EXISTS "${target}")
    message(STATUS "Up-to-date: ${target}")
    return()
  endif()
  file(REMOVE_RECURSE "${target}.new")
  file(COPY ${ARGN} DESTINATION "${target}.new")
  file(RENAME "${target}.new" "${target}")
  message(STATUS "Installing: ${target}")
endfunction()

# magnetar_point(LINK TARGET): a symbolic link, replaced in one step.
function(magnetar_point link target)
  set(path "$ENV{DESTDIR}${link}")
  file(REMOVE "${path}.new")
  file(CREATE_LINK "${target}" "${path}.new" SYMBOLIC)
  file(RENAME "${path}.new" "${path}")
  message(STATUS "Installing: ${path} -> ${target}")
endfunction()

# magnetar_configuration(FILE FOLDER): copied only if the operator has none yet.
function(magnetar_configuration file folder)
  get_filename_component(name "${file}" NAME)
  if(EXISTS "$ENV{DESTDIR}${folder}/${name}")
    message(STATUS "Keeping: $ENV{DESTDIR}${folder}/${name}")
    return()
  endif()
  file(COPY "${file}" DESTINATION "$ENV{DESTDIR}${folder}")
  message(STATUS "Installing: $ENV{DESTDIR}${folder}/${name}")
endfunction()
