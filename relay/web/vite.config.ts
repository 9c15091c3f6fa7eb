import { defineConfig } from "vite";

// The relay serves this folder below /dashboard; nothing is inlined, its policy would refuse it.
export default defineConfig({
  base: "/dashboard/",
  build: {
    outDir: "../wai_relay/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    reportCompressedSize: false,
  },
});
