/* A CUDA that computes nothing: device memory is the CPU's, kernels are not launched, and every other call succeeds.
   ONNX Runtime's CUDA provider loads models with it, and says where their nodes would run. See ../cuda_placement.py,
   which adds the functions that are not here. */
#include <stdlib.h>
#include <string.h>

/* The first fields of cudaDeviceProp, as CUDA 12 and 13 have them up to the limits of a block. */
struct properties {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t global_memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3];
    size_t constant_memory;
    int major, minor;
    size_t alignment[2];
    int processors;
};

int cudaGetDeviceProperties(struct properties *p, int device) {
    memset(p, 0, sizeof *p + 256);
    strcpy(p->name, "stub");
    p->global_memory = (size_t)80 << 30;
    p->shared_memory = 48 << 10;
    p->registers = 65536, p->warp = 32, p->threads = 1024;
    p->block[0] = p->block[1] = 1024, p->block[2] = 64;
    p->grid[0] = 2147483647, p->grid[1] = p->grid[2] = 65535;
    p->major = 9, p->minor = 0, p->processors = 132;
    return 0;
}

int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaGetDevice(int *device) { return *device = 0; }
int cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    enum { BLOCK = 1, PROCESSORS = 16, MAJOR = 75 };
    *value = attribute == MAJOR ? 9 : attribute == PROCESSORS ? 132 : attribute == BLOCK ? 1024 : 0;
    return 0;
}
int cudaMemGetInfo(size_t *free, size_t *total) { return *free = *total = (size_t)80 << 30, 0; }

int cudaMalloc(void **memory, size_t size) { return *memory = aligned_alloc(256, (size + 511) / 256 * 256), 0; }
int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return cudaMalloc(memory, size); }
int cudaMallocFromPoolAsync(void **memory, size_t size, void *pool, void *stream) { return cudaMalloc(memory, size); }
int cudaFree(void *memory) { return free(memory), 0; }
int cudaFreeHost(void *memory) { return free(memory), 0; }
int cudaFreeAsync(void *memory, void *stream) { return free(memory), 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return memcpy(to, from, size), 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *s) { return memcpy(to, from, size), 0; }
int cudaMemset(void *memory, int value, size_t size) { return memset(memory, value, size), 0; }
int cudaMemsetAsync(void *memory, int value, size_t size, void *stream) { return memset(memory, value, size), 0; }
int cudaPointerGetAttributes(void *attributes, const void *pointer) { return memset(attributes, 0, 24), 0; }
int cudaStreamIsCapturing(void *stream, int *status) { return *status = 0; }
int cudaStreamEndCapture(void *stream, void **graph) { return *graph = malloc(64), 0; }
int cudaFuncGetAttributes(void *attributes, const void *function) { return memset(attributes, 0, 64), 0; }
void **__cudaRegisterFatBinary(void *binary) { return malloc(64); }

const char *cudaGetErrorName(int error) { return "stub"; }
const char *cudaGetErrorString(int error) { return "stub"; }
const char *cublasGetStatusName(int status) { return "stub"; }
const char *cublasGetStatusString(int status) { return "stub"; }
const char *cudnnGetErrorString(int status) { return "stub"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }
size_t cudnnGetVersion(void) { return 91500; }
int curandCreateGenerator(void **generator, int kind) { return *generator = malloc(64), 0; }
int curandDestroyGenerator(void *generator) { return 0; }
