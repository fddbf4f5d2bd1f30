#!/bin/bash
cd "$(dirname "$0")"
export CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=$PWD
V=/work/wt/amx/.venv
$V/bin/cmake -S . -B build/dev -G Ninja -DCMAKE_MAKE_PROGRAM=$(which ninja) -DPython_EXECUTABLE=$V/bin/python -Dpybind11_DIR=$($V/bin/python -c 'import pybind11;print(pybind11.get_cmake_dir())') -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$PWD/cascade_engine -DCMAKE_BUILD_TYPE=Release -DCE_CUDA=${CE_CUDA:-OFF} -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >build.log 2>&1 && $V/bin/cmake --build build/dev --target _C >>build.log 2>&1 || { grep -E "error|Error|warning" -A5 build.log | head -60; exit 1; }
