% Writes octave.mat: see README.md. Run it in a folder of its own that holds the .m files of metalbubble/CAM.
pkg load image

% ---- where Octave answers as MATLAB does
image = [ 12 250   3 118  67 201  90
           0  44 255 130  21  76 199
          83 160  31   5 222 140  58
         240  17  99 181  64   9 255
         128 128   0 255  72 111  36
          55 203 148  26 190   1  87];
data.image = uint8(image);
enlarged = {[6 7], [12 14], [7 8], [9 25], [31 7], [6 20], [17 40]};
% An axis is divided by a whole number. Elsewhere the weights do not add up to 1, and Octave does not divide by their sum.
reduced = {[3 7], [2 7], [2 14], [1 7], [6 1]};
for output = [enlarged reduced]
  for method = {'bicubic', 'bilinear'}
    data.(sprintf('imresize_%s_%dx%d', method{1}, output{1})) = imresize(image, output{1}, method{1});
  end
end

for n = [1 2 3 4 5 8 10 13 64 255 256]
  data.(sprintf('jet_%d', n)) = jet(n);
end

values = [-2.5 0 1 3.75; 7 -1 0.125 4];
data.values = values;
data.mat2gray = mat2gray(values);
data.mat2gray_limits = mat2gray(values, [-1 4]);
data.mat2gray_inverted = mat2gray(values, [4 -1]);
data.mat2gray_equal = mat2gray(values, [2 2]);

ramp = (0:2040) / 2040;
data.gray2ind_256 = gray2ind(ramp, 256);
data.gray2ind_64 = gray2ind(ramp, 64);
data.gray2ind_1000 = gray2ind(ramp, 1000);
data.gray2ind_uint8 = gray2ind(uint8(0:255), 64);
data.gray2ind_int16 = gray2ind(int16(-32768:1000:32767), 300);
data.ind2rgb = ind2rgb(uint8([0 1 2; 63 64 255]), jet(64));
data.im2uint8 = im2uint8(ramp * 1.2 - 0.1);
data.im2double_uint8 = im2double(uint8(0:255));
data.im2double_uint16 = im2double(uint16(0:257:65535));
data.im2double_int16 = im2double(int16([-32768 -1 0 1 32767]));

% ---- the .m files of the CAM repository; their arrays have the width first
holed = magic(8)(:, 1:6) / 7;
holed(3, 2) = NaN;
data.holed = holed;
data.map2jpg = map2jpg(holed);
data.map2jpg_range = map2jpg(holed, [2 6], 'hsv');
data.hsv = hsv(256);

features = single(reshape(mod((1:3*4*5*2) * 37, 23) - 9, [3 4 5 2]));
weights = single(reshape(mod((1:5*3) * 11, 13) - 6, [5 3]) / 8);
data.features = features;
data.weights = weights;
data.returnCAMmap = returnCAMmap(features, weights);

% A picture that says where it was cut, less a mean that differs in every direction.
[x, y] = meshgrid(0:255, 0:255);
picture = uint8(cat(3, x, y, 255 - x));
mean_data = single(cat(3, x' / 2, y' / 4, 100 + 0 * x'));
save('-v6', 'ilsvrc_2012_mean.mat', 'mean_data');
for crop = [224 227]
  name = sprintf('prepare_image_%d', crop);
  text = strrep(fileread('prepare_image.m'), 'CROPPED_DIM = 224;', sprintf('CROPPED_DIM = %d;', crop));
  file = fopen([name '.m'], 'w');
  fputs(file, strrep(text, 'prepare_image(im)', [name '(im)']));
  fclose(file);
  rehash();
  crops = feval(name, picture);
  data.(name) = crops([1 end], [1 end], :, :);  % of each crop, the pixels in its corners

  blocks = mod((1:4*4*10) * 29, 31) - 12;
  fine = ceil((1:crop) * 4 / crop);
  maps = reshape(blocks, [4 4 10])(fine, fine, :);
  data.(sprintf('maps_%d', crop)) = int8(maps);
  data.(sprintf('mergeTenCrop_%d', crop)) = int16(mergeTenCrop(maps));
end

save('-v6', 'octave.mat', '-struct', 'data');
