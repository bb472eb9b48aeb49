# Everything here starts from a fresh clone with Python >= 3.11, pip and g++, and installs what it needs into .venv and build/.
PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# PIP_FLAGS=--quiet and the like.
PIP_FLAGS ?= -q

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
# The widest instruction set with every kernel path: the CPU's own, else the same source in a form that runs on any AVX2 machine.
WIDEST := $(shell grep -qw avx512_bf16 /proc/cpuinfo 2>/dev/null && echo avx512bf16 || echo avx512bf16emu)
EMULATE := $(if $(findstring emu,$(WIDEST)),ON,OFF)
# Instruction sets that the Python tests marked `isa` are repeated for, besides the one this CPU would choose; a set that it lacks is
# left out.
ISAS ?= generic avx2 avx512 $(WIDEST)
# One set for each vector width: sanitized kernels take long to compile.
SANITIZED ?= generic;avx2;$(WIDEST)

.PHONY: demo test test-cpp test-cuda test-neon test-sanitize test-python lint format docs wheel sdist clean

$(VENV)/.tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) torch==2.13.0 numpy
	$(BIN)/pip install $(PIP_FLAGS) $$($(BIN)/python tools/extras.py build test demo $(if $(shell which nvcc 2>/dev/null),static))
	touch $@

$(VENV)/.lint: $(VENV)/.tools
	$(BIN)/pip install $(PIP_FLAGS) $$($(BIN)/python tools/extras.py lint)
	touch $@

# The package goes into .venv as a wheel, as a user would get it. The build directory is kept, so only changes are compiled.
WHEEL = CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/pip install $(PIP_FLAGS) --no-build-isolation --no-deps \
	--force-reinstall -Cbuild-dir=build/wheel

demo: $(VENV)/.tools
	$(WHEEL) -Ccmake.define.ATTN_EMULATE=OFF -Ccmake.define.ATTN_TESTS=OFF .
	$(BIN)/python -m attn demo

test: test-cpp test-sanitize test-python

# Together with the wheel, so that kernels are compiled once for both.
.PHONY: install
install: $(VENV)/.tools
	$(WHEEL) -Ccmake.define.ATTN_EMULATE=$(EMULATE) -Ccmake.define.ATTN_TESTS=ON -Ccmake.define.ATTN_WERROR=ON .

test-cpp: install
	$(BIN)/ctest --test-dir build/wheel --output-on-failure -j $(JOBS)

# The library with CUDA kernels, built and loaded without a GPU, and the tests that gpu_check runs on one; not part of `test`: building
# takes minutes. Needs nvcc; the kernels of sm_90a need CUTLASS, too.
CUDA_TESTS := $(addprefix tests/python/test_,cuda_library.py cuda_ops.py cuda_fakes.py build.py)
test-cuda: $(VENV)/.tools
	-$(BIN)/pip install $(PIP_FLAGS) nvidia-cutlass==4.2.0.0
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DATTN_CUDA=ON -DATTN_TESTS=ON -DATTN_WERROR=ON -DPython_EXECUTABLE=$(BIN)/python
	$(BIN)/cmake --build build/cuda -j $(JOBS) --target attn_ops _C device_tests
	build/cuda/tests/device/device_tests --gtest_list_tests > build/cuda/device_tests.txt
	rm -rf build/cuda/package
	mkdir -p build/cuda/package
	cp -r python/attn build/cuda/package
	cp build/cuda/libattn_ops.so build/cuda/_C*.so build/cuda/package/attn
	PYTHONPATH=build/cuda/package $(BIN)/python -m pytest -q -n $(JOBS) $(CUDA_TESTS)

# The C++ tests once more for Arm, cross-compiled and emulated; not part of `test`, since emulation is slow.
test-neon: $(VENV)/.tools
	JOBS=$(JOBS) scripts/check_neon.sh

# The C++ tests, and every op called from Python with good and bad arguments, on a sanitized build.
SANITIZED_RUN = ASAN_OPTIONS=detect_leaks=0:handle_segv=0 PYTHONPATH=build/sanitize/package \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)"
test-sanitize: $(VENV)/.tools
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DATTN_TESTS=ON -DATTN_EMULATE=$(EMULATE) \
		"-DATTN_CPU_ISAS=$(SANITIZED)" -DATTN_SANITIZE=address,undefined -DPython_EXECUTABLE=$(BIN)/python
	$(BIN)/cmake --build build/sanitize -j $(JOBS)
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure -j $(JOBS)
	rm -rf build/sanitize/package
	mkdir -p build/sanitize/package
	cp -r python/attn build/sanitize/package
	cp build/sanitize/libattn_ops.so build/sanitize/_C*.so build/sanitize/package/attn
	for isa in $(subst ;, ,$(SANITIZED)); do \
		ATTN_CPU_ISA=$$isa $(SANITIZED_RUN) $(BIN)/python -m pytest -q tests/python/test_ops_robust.py || exit 1; \
	done

# The site is built by the tests where mkdocs could be installed.
test-python: install
	-$(MAKE) --no-print-directory $(VENV)/.docs
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"
	for isa in $(ISAS); do \
		if $(BIN)/python -c "import sys, attn._C as c; sys.exit('$$isa' == c.cpu_isa() or '$$isa' not in c.available_isas())"; then \
			echo "== ATTN_CPU_ISA=$$isa"; ATTN_CPU_ISA=$$isa $(BIN)/python -m pytest -n $(JOBS) -q -m "isa and not slow" || exit 1; \
		fi; \
	done

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

# The site of docs/, in build/site; a warning is an error. Needs neither torch nor a compiler.
$(VENV)/.docs: pyproject.toml
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) $$($(BIN)/python tools/extras.py docs)
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What would be published: a wheel in dist/ that says on which systems it runs, checked by scripts/audit_wheel.py. torch's libraries stay
# outside: they are the ones of the torch that is installed.
$(VENV)/.release: $(VENV)/.tools
	$(BIN)/pip install $(PIP_FLAGS) $$($(BIN)/python tools/extras.py release)
	touch $@

wheel: $(VENV)/.release
	rm -rf build/dist dist
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/pip wheel $(PIP_FLAGS) . --no-build-isolation --no-deps -w build/dist \
		--config-settings=build-dir=build/wheel --config-settings=cmake.define.ATTN_EMULATE=OFF \
		--config-settings=cmake.define.ATTN_TESTS=OFF
	$(BIN)/auditwheel repair --exclude 'libtorch*.so*' --exclude 'libc10*.so*' -w dist build/dist/attn-*.whl
	$(BIN)/python scripts/audit_wheel.py dist/attn-*.whl

# A source distribution that builds where only torch is installed, and runs.
sdist: $(VENV)/.tools
	PYTHON=$(BIN)/python scripts/smoke_sdist.sh

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

clean:
	rm -rf build dist $(VENV)
